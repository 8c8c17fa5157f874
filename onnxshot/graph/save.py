"""Write a model: aside first, checked, then renamed, so that a file that exists is a file that is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from onnx import TensorProto

from onnxshot.errors import UsageError
from onnxshot.files.atomic_write import aside
from onnxshot.files.links import follow_link
from onnxshot.files.model_and_data import publish
from onnxshot.graph import weights
from onnxshot.graph.ir import Constant
from onnxshot.graph.model import Model

_INLINE = 1024  # bytes: smaller constants stay in the .onnx file even when the weights are external


class Draft:
    """A written model that is not at its place yet. `path` can be loaded and run; `publish` renames it into place."""

    def __init__(self, folder: Path, final: Path, files: list[str]) -> None:
        self._folder = folder
        self.final = final
        self.files = files
        self.path = folder / final.name
        self.size_bytes = sum((folder / name).stat().st_size for name in files)  # of all files, also once published

    def publish(self) -> Path:
        """Move the files to their place; a reader finds the old model or the new one, each with its own data."""
        try:
            publish(self._folder, self.final, self.files)
        except OSError as e:
            raise UsageError(f"cannot write {self.final}: {e.strerror}", "choose another place") from e
        return self.final


@contextlib.contextmanager
def draft(model: Model, final: Path) -> Iterator[Draft]:
    """Write the model into a hidden folder beside `final` and hand it over for checking; always cleaned up.

    final: a link stays, and what it leads to is written. Raises UsageError where its folder cannot be written.
    """
    final = follow_link(Path(final))
    with aside(final) as folder:
        try:
            files = write(model, folder / final.name)
        except OSError as e:
            raise UsageError(f"cannot write {final}: {e.strerror or e}") from e
        yield Draft(folder, final, files)


def stored_size(model: Model) -> int:
    """Bytes that a model takes once it is written, but for its metadata and what was inferred of its shapes."""
    proto, lifted = model.skeleton()
    listed = {info.name for info in model.graph.inputs}
    inputs = [info for info in proto.graph.input if info.name in listed or info.name not in lifted]
    del proto.graph.value_info[:], proto.metadata_props[:], proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return int(proto.ByteSize()) + sum(weights.size_bytes(c) + len(name) + 16 for name, c in lifted.items())


def write(model: Model, path: Path, *, external: bool | None = None) -> list[str]:
    """Write the model to `path`; names of the files written, the .onnx file first.

    Weights go to `<name>.data` where they are over 1 GiB, or where they were external before. One weight is in memory
    at a time. This writes in place: callers who want all or nothing use `draft`.
    """
    if external is None:
        total = sum(map(weights.size_bytes, model.constants()))
        external = model.external_data or total > weights.EXTERNAL_LIMIT
    if not external:
        path.write_bytes(model.to_proto().SerializeToString(deterministic=True))
        return [path.name]
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError as e:
        what = f"{path.name} is not UTF-8, and the weights are in a file of their own, whose name the model holds"
        raise UsageError(what, "choose another place") from e
    data = weights.DataFile(path.with_name(path.name + ".data"), path.name + ".data")

    def store(constant: Constant) -> TensorProto:
        if weights.size_bytes(constant) < _INLINE or weights.elem_type(constant) == TensorProto.STRING:
            return weights.to_proto(constant)
        return data.add(constant)

    try:
        proto = model.export(store)
    finally:
        data.close()
    path.write_bytes(proto.SerializeToString(deterministic=True))
    if not data.path.stat().st_size:
        data.path.unlink()  # all weights are small
        return [path.name]
    return [path.name, data.path.name]
