"""Write a model atomically: into a hidden folder first, then, once it is checked, by renaming to its place."""

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
from onnxshot.graph.data_file import DataFile
from onnxshot.graph.ir import Constant
from onnxshot.graph.model import MOST_BYTES, Model
from onnxshot.graph.stream_model import write_streamed

_HELD = 32 << 20  # bytes of weights up to which a model is written from memory at once
_INLINE = 1024  # bytes: smaller constants stay in the .onnx file even where weights are external


class Draft:
    """A written model that is not at its place yet.

    Attributes:
        final: the path it will have.
        files: names of its files, the .onnx file first.
        path: the path of the .onnx file until then; it can be loaded and run.
        size_bytes: size of all files; unchanged by `publish`.
    """

    def __init__(self, folder: Path, final: Path, files: list[str]) -> None:
        self._folder = folder
        self.final = final
        self.files = files
        self.path = folder / final.name
        self.size_bytes = sum((folder / name).stat().st_size for name in files)

    def rewrite(self, model: Model) -> None:
        """Write another model in place of this one, before it is published."""
        for name in self.files:
            (self._folder / name).unlink()
        self.files = write(model, self.path)
        self.size_bytes = sum((self._folder / name).stat().st_size for name in self.files)

    def publish(self) -> Path:
        """Rename the files to their place. A reader finds either the old or the new model, each with its own data.

        Raises:
            UsageError: the files cannot be moved there.
        """
        try:
            publish(self._folder, self.final, self.files)
        except OSError as e:
            raise UsageError(f"cannot write {self.final}: {e.strerror}", "choose another place") from e
        return self.final


@contextlib.contextmanager
def draft(model: Model, final: Path) -> Iterator[Draft]:
    """Write the model into a hidden folder beside `final`, and yield it for checks. The folder is always removed.

    Args:
        model: the model.
        final: the path that `Draft.publish` gives the file. Where it is a link, the file it points to is replaced.

    Raises:
        UsageError: the folder cannot be written.
    """
    final = follow_link(Path(final))
    with aside(final) as folder:
        try:
            files = write(model, folder / final.name)
        except OSError as e:
            raise UsageError(f"cannot write {final}: {e.strerror or e}") from e
        yield Draft(folder, final, files)


def stored_size(model: Model) -> int:
    """Return the size of the model in bytes once it is written, without its metadata and inferred shapes."""
    proto, lifted = model.skeleton()
    listed = {info.name for info in model.graph.inputs}
    inputs = [info for info in proto.graph.input if info.name in listed or info.name not in lifted]
    del proto.graph.value_info[:], proto.metadata_props[:], proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return int(proto.ByteSize()) + sum(weights.size_bytes(c) + len(name) + 16 for name, c in lifted.items())


def write(model: Model, path: Path, *, external: bool | None = None) -> list[str]:
    """Write the model to `path`, not atomically; use `draft` for an atomic write.

    Only one weight of a large model is in memory at a time.

    Args:
        model: the model.
        path: the .onnx file.
        external: whether weights go to a file of their own, named with the model's `data_suffix`. None: where they are
            over 1 GiB, or were external before.

    Returns:
        Names of the files written, the .onnx file first.

    Raises:
        UsageError: the name of the data file cannot be stored in the model, as it is not UTF-8.
    """
    total = model.weight_bytes()
    if external is None:
        external = model.external_data or total > weights.EXTERNAL_LIMIT
    if not external and _HELD < total <= MOST_BYTES:
        write_streamed(model, path)
        return [path.name]
    if not external:
        path.write_bytes(model.to_proto().SerializeToString(deterministic=True))
        return [path.name]
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError as e:
        what = f"{path.name} is not UTF-8, and the weights are in a file of their own, whose name the model holds"
        raise UsageError(what, "choose another place") from e
    name = path.name + model.data_suffix
    data = DataFile(path.with_name(name), name)

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
