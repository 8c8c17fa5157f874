"""Write the files of a result: the model file, artifacts, and the record, all verified before they are published."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnx import ModelProto

from onnxshot import system
from onnxshot.arguments import checked
from onnxshot.delivery import output_files
from onnxshot.delivery.input_files import of_model
from onnxshot.delivery.record import leave_beside
from onnxshot.delivery.user_session import session_of
from onnxshot.files.atomic_write import aside, scratch
from onnxshot.files.conflicts import Files
from onnxshot.files.links import follow_link
from onnxshot.graph import Model, weights
from onnxshot.graph.save import Draft, draft
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

RANDOM_KEY = "onnxshot.calibrated_on_random_data"
"""Metadata key of models that were calibrated on random data."""


@dataclass(slots=True)
class Made:
    """A model that a run has made; base class of results.

    Attributes:
        model: the model, in memory. A run with an output path has written it there too.
    """

    called: ClassVar[str] = "a result"
    """Its name in messages."""

    model: Model

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the model to a file, atomically.

        Args:
            path: an .onnx file. Weights go to `path`.data where the model is over 1 GiB, or came with external data.

        Returns:
            The path.

        Raises:
            UsageError: the path is a file that the model was read from, or external data of another model.

        Example:
            result = onnxshot.quantize("model.onnx", "samples/")
            result.save("model.int8.onnx")
        """
        refuse_lost(self.model, path)
        with draft(self.model, Path(path)) as written:
            return written.publish()

    @property
    def model_proto(self) -> ModelProto:
        """The model as a ModelProto, which holds its weights.

        Raises:
            ModelError: the model is over 2 GiB, more than a ModelProto may have; `save` writes it.

        Example:
            onnx.save(onnxshot.quantize("model.onnx", "samples/").model_proto, "model.int8.onnx")
        """
        self.model.forget_inferred()
        return self.model.to_proto()

    def session(
        self,
        *,
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] = ("CPUExecutionProvider",),
        **options: Any,
    ) -> InferenceSession:
        """Return a session of ONNX Runtime that runs the model; a model over 2 GiB waits in a temporary folder.

        Args:
            sess_options: how ONNX Runtime runs it, such as its threads.
            providers: execution providers, the preferred one first.
            **options: other arguments of `onnxruntime.InferenceSession`.

        Raises:
            ModelError: ONNX Runtime does not load the model.

        Example:
            session = onnxshot.quantize("model.onnx", "samples/").session()
            session.run(None, {"x": x})
        """
        self.model.forget_inferred()
        return session_of(self.model, sess_options, providers, options)


def refuse_lost(model: Model, path: str | Path) -> None:
    """Raise UsageError where writing a model to a path would replace its own source, or external data of another."""
    Files(of_model(model), tuple(output_files.of_model(path, data=output_files.data_suffix(model)))).check()


def deliver(
    model: Model,
    output: str | Path | None,
    target: str,
    report: Report,
    prove: Callable[[Draft], tuple[Model, Report] | None],
    others: Callable[[Path], Iterable[AbstractContextManager[tuple[Draft, Artifact]]]] = lambda _: (),
    *,
    keep: bool = True,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a temporary file, verify it, make the artifacts from it, and only then publish all files.

    Args:
        model: the model.
        output: path of the model file. With None, the model is verified and then removed.
        target: name of the target.
        report: the report of the run, which the outputs and notes are added to.
        prove: verifies the written file. It may write a better model in its place: then it returns that, and its
            report.
        others: makes the artifacts from the written file.
        keep: whether the model file is published; if not, only the artifacts are.
        source: where the inputs of the run came from, for the record; None to write no record file.

    Raises:
        UsageError: a file cannot be written.
        ModelError: a file that the model was read from was changed meanwhile.
        OnnxshotError: whatever `prove` and `others` raise.
    """
    output = None if output is None else follow_link(Path(output))
    model.forget_inferred()
    with contextlib.ExitStack() as stack:
        if output is None:
            final, keep = stack.enter_context(scratch()) / "model.onnx", False
        else:
            if keep:
                refuse_lost(model, Path(output))  # again: with larger weights, it may now have a data file
            final = Path(output) if keep else stack.enter_context(aside(Path(output))) / Path(output).name
        written = stack.enter_context(draft(model, final))
        try:
            model, report = prove(written) or (model, report)
            if output is not None and keep:
                refuse_lost(model, Path(output))
            done = [(written, Artifact(str(final), target, "onnx", written.size_bytes))] if keep else []
            done += [stack.enter_context(other) for other in others(written.path)]
        except Exception:
            model.check_files()  # a proof against another model fails for reasons that mislead
            raise
        model.check_files()
        for one, artifact in done:
            one.publish()
            report.outputs.append(artifact)
    there = {artifact.format for _, artifact in done if artifact.latency}
    if target in there:  # the artifact was run in the target's runtime after such a note was made
        report.notes = [_in_both(note, target) for note in report.notes]
    if output is not None and source is not None:
        files = [one.final.parent / name for one, _ in done for name in one.files]
        report.notes += leave_beside(model, Path(output), source, files)
    report.peak_rss_mb = peak_rss_mb()


def _in_both(note: str, target: str) -> str:
    """Correct a note that says a file was not run in the target's runtime, where an artifact of the run was."""
    if not note.endswith(f", not in {target}; not timed"):
        return note
    return f"the .onnx file was {note.removesuffix('; not timed')}; the {target} file was run there"


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB; 0 where the system does not report it."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return float(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024
    return system.peak_bytes() / (1 << 20)


def reset_peak_rss() -> None:
    """Start to measure the peak anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def source_name(source: str | Path | ModelProto) -> str:
    """The name of a run's input in reports: its path, or "(ModelProto)"."""
    return str(source) if isinstance(source, str | Path) else "(ModelProto)"


def input_bytes(source: str | Path | ModelProto, model: Model) -> int:
    """Size of a run's input in bytes, including external data."""
    if isinstance(source, ModelProto):
        return int(source.ByteSize())
    stored = (c._values for c in model.constants() if isinstance(c._values, weights.StoredValues))
    return Path(source).stat().st_size + sum(int(values.nbytes) for values in stored if values.external)
