"""The file that a run leaves: what stands in its metadata, how it is written, proven and published."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot.arguments import checked
from onnxshot.delivery import output_files
from onnxshot.delivery.input_files import of_model
from onnxshot.delivery.record import leave_beside
from onnxshot.files.atomic_write import aside, scratch
from onnxshot.files.conflicts import Files
from onnxshot.files.links import follow_link
from onnxshot.graph import Model, weights
from onnxshot.graph.save import Draft, draft
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact

RANDOM_KEY = "onnxshot.calibrated_on_random_data"


@dataclass(slots=True)
class Made:
    """A model that a run has made. Without an output path, nothing is kept on disk."""

    model: Model

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the model to `path` (and `path`.data where it is over 1 GiB), aside first; the path.

        Raises UsageError where that is a file that the model was read from, or the data of another.
        """
        refuse_lost(self.model, Path(path))
        with draft(self.model, Path(path)) as written:
            return written.publish()


def refuse_lost(model: Model, path: Path) -> None:
    """Raise UsageError where a model written there would replace what it was read from, or the data of another."""
    Files(of_model(model), tuple(output_files.of_model(path, external=output_files.is_external(model)))).check()


def deliver(
    model: Model,
    output: str | Path | None,
    target: str,
    report: Report,
    prove: Callable[[Draft], None],
    others: Callable[[Path], Iterable[AbstractContextManager[tuple[Draft, Artifact]]]] = lambda _: (),
    *,
    keep: bool = True,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Write the model aside, have `prove` look at the file, make the `others` of it, and only then publish them all.

    source: what the file beside them says of where the run's inputs lay; None where there is to be no such file.
    Without an output path the model is proven all the same, and removed; so is it where it is not to be kept. Raises
    what `prove` and `others` raise, and UsageError where a file cannot be written.
    """
    output = None if output is None else follow_link(Path(output))
    model.forget_inferred()
    with contextlib.ExitStack() as stack:
        if output is None:
            final, keep = stack.enter_context(scratch()) / "model.onnx", False
        else:
            if keep:
                refuse_lost(model, Path(output))  # its weights may be larger than before the work
            final = Path(output) if keep else stack.enter_context(aside(Path(output))) / Path(output).name
        written = stack.enter_context(draft(model, final))
        prove(written)
        done = [(written, Artifact(str(final), target, "onnx", written.size_bytes))] if keep else []
        done += [stack.enter_context(other) for other in others(written.path)]
        for one, artifact in done:
            one.publish()
            report.outputs.append(artifact)
    there = {artifact.format for _, artifact in done if artifact.latency}
    if target in there:  # it was run after the note was made
        report.notes = [_in_both(note, target) for note in report.notes]
    if output is not None and source is not None:
        files = [one.final.parent / name for one, _ in done for name in one.files]
        report.notes += leave_beside(model, Path(output), source, files)
    report.peak_rss_mb = peak_rss_mb()


def _in_both(note: str, target: str) -> str:
    """A note that a file was not run in the target's runtime, where another of the run was."""
    if not note.endswith(f", not in {target}; not timed"):
        return note
    return f"the .onnx file was {note.removesuffix('; not timed')}; the {target} file was run there"


def peak_rss_mb() -> float:
    """Peak resident memory of this process; 0 where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return float(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024
    return 0.0


def source_name(source: str | Path | ModelProto) -> str:
    """What a report calls the model that was given."""
    return str(source) if isinstance(source, str | Path) else "(ModelProto)"


def input_bytes(source: str | Path | ModelProto, model: Model) -> int:
    """Bytes of the source, external data included."""
    if isinstance(source, ModelProto):
        return int(source.ByteSize())
    stored = (c._values for c in model.constants() if isinstance(c._values, weights.StoredValues))
    return Path(source).stat().st_size + sum(int(values.nbytes) for values in stored if values.external)
