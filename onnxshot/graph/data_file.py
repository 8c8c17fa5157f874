"""Write the external data file of a model."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxshot.graph import weights
from onnxshot.graph.weight_pieces import raw_pieces
from onnxshot.graph.weights import elem_type


class DataFile:
    """The external data file of a model that is being written. Tensors are appended one at a time, aligned.

    Args:
        path: the file to create.
        location: its name as the model stores it, relative to the model's folder.
    """

    ALIGN = 4096  # ONNX External Data: runtimes can memory-map tensors at multiples of the page size
    ALIGNED_FROM = 1 << 16  # bytes; smaller tensors, such as scales, would be padding by the half
    LINE = 64  # alignment of smaller tensors: that of a cache line, and of every type

    def __init__(self, path: Path, location: str) -> None:
        self.path = path
        self.location = location
        self._file = path.open("wb")

    def add(self, constant: gs.Constant) -> TensorProto:
        """Append the values of a constant, and return a TensorProto that refers to them."""
        proto = TensorProto(name=constant.name, data_type=elem_type(constant), dims=constant.shape)
        self._file.seek(0, 2)
        align = self.ALIGN if weights.size_bytes(constant) >= self.ALIGNED_FROM else self.LINE
        self._file.write(b"\0" * (-self._file.tell() % align))
        offset = self._file.tell()
        for piece in raw_pieces(constant):
            self._file.write(piece)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", offset), ("length", self._file.tell() - offset)):
            proto.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
        return proto

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()
