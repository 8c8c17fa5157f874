"""`verify`: check the hashes of a bundle, and run its samples in every runtime that is installed here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.bundles.bundle_manifest import Made, check_files, files_of, read_manifest
from onnxshot.bundles.samples import Arrays, Stored, read_sample
from onnxshot.delivery.artifacts import load_artifact
from onnxshot.errors import ModelError, TargetError
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.report.values import rounded
from onnxshot.settings import budgeted

SAME_DB = 60.0
"""SQNR in dB above which float outputs count as equal: the order of summation differs between CPUs."""


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output of one artifact over all samples.

    Attributes:
        artifact: Name of the file.
        output: Name of the output.
        equal: Share 0..1 of values that equal the recorded ones bit by bit.
        sqnr_db: SQNR in dB of float values relative to the recorded ones; None for other types, which must be equal.
        least_db: Least SQNR that passes: 60 dB, or the SQNR of the recorded values relative to the float model, if
            that is lower. Sums in another order on another CPU may round to a neighbouring integer.
    """

    artifact: str
    output: str
    equal: float
    sqnr_db: float | None = None
    least_db: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the output equals the recorded one within its tolerance."""
        return self.equal == 1.0 or (
            self.sqnr_db is not None and self.least_db is not None and self.sqnr_db >= self.least_db
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a check.

    Attributes:
        files: Number of files whose hash is the one in the manifest.
        samples: Number of samples that were run.
        outputs: One row per output of every artifact that was run.
        not_run: Artifact -> why it was not run, for instance because its runtime is not installed.
        not_listed: Files that the manifest does not list, and that were therefore not checked.
    """

    files: int
    samples: int
    outputs: tuple[OutputCheck, ...]
    not_run: dict[str, str]
    not_listed: tuple[str, ...]

    @property
    def deviations(self) -> tuple[OutputCheck, ...]:
        """Outputs that differ from the recorded ones."""
        return tuple(row for row in self.outputs if not row.passed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under stable keys."""
        values: dict[str, Any] = rounded(asdict(self))
        values["outputs"] = [{**rounded(asdict(row)), "passed": row.passed} for row in self.outputs]
        return values


@checked
@budgeted
@one_blas_thread()
def verify(folder: str | Path, *, threads: int = 2, memory: int | str | None = None) -> Verified:
    """Check every file of a bundle against its manifest, and run its samples in the installed runtimes.

    A matching hash shows that a file has not changed since the manifest was written. It does not show who wrote it.

    Args:
        folder: The bundle.
        threads: Threads of every runtime.
        memory: Memory budget, as in `Settings`.

    Returns:
        One row per output that was run; `deviations` lists those that differ.

    Raises:
        ModelError: A file is changed, missing, a link, or outside the folder, or a model or sample cannot be read.
        TargetError: No artifact has a runtime here.

    Example:
        >>> checked = onnxshot.verify("bundle/")
        >>> checked.deviations
        ()
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    names = tuple(made.file for made in manifest.artifacts)
    samples = [read_sample(folder / name, names) for name in manifest.samples]
    rows: list[OutputCheck] = []
    not_run = {}
    for made in manifest.artifacts:
        try:
            rows += _rows(folder, made, samples, threads)
        except TargetError as e:
            not_run[made.file] = str(e)
    if samples and not rows and not_run:
        name, reason = next(iter(not_run.items()))
        raise TargetError(f"all hashes match, but nothing was run: {name}: {reason}", "install a runtime of it")
    added = tuple(name for name in files_of(folder) if name not in manifest.files)
    return Verified(len(manifest.files), len(samples), tuple(rows), not_run, added)


def _rows(folder: Path, made: Made, samples: list[Stored], threads: int) -> list[OutputCheck]:
    """Rows of all outputs of an artifact. Raises TargetError if it does not run here, or did not where it was made."""
    if not samples:
        raise TargetError("no sample was recorded: the model draws random numbers, or its samples are too large")
    if not any(sample.outputs[made.file] for sample in samples):
        given = load_artifact(folder / made.file, made.format, threads=threads).outputs
        why = "its runtime was not there when it was made" if given else "numpy has none of their types"
        raise TargetError(f"no outputs were recorded, since {why}")
    runner = load_artifact(folder / made.file, made.format, threads=threads)
    sums: dict[str, _Sums] = {}
    for sample in samples:
        found = runner.run(sample.inputs)
        for name, recorded in sample.outputs[made.file].items():
            if name not in found:
                raise ModelError(f"{folder / made.file} has no output {name!r}, which its samples have")
            sums.setdefault(name, _Sums()).add(recorded, found[name], _same_shape(sample.expected, name, recorded))
    return [entry.row(made.file, name) for name, entry in sums.items()]


def _same_shape(expected: Arrays, name: str, recorded: NDArray[Any]) -> NDArray[Any] | None:
    """The float model's values of an output; None if it has none of that shape."""
    values = expected.get(name)
    return values if values is not None and values.shape == recorded.shape else None


class _Sums:
    """Running sums for one output."""

    def __init__(self) -> None:
        self.count = self.same = 0
        self.floats = True
        self.moved, self.own = SqnrSum(), SqnrSum()

    def add(self, recorded: NDArray[Any], found: NDArray[Any], expected: NDArray[Any] | None) -> None:
        """Add one sample. recorded, found: outputs of the artifact then and now. expected: of the float model."""
        self.count += recorded.size
        if recorded.shape != found.shape or recorded.dtype != found.dtype:
            self.floats = False
            return
        nan = (recorded != recorded) & (found != found)  # strings have no isnan
        self.same += int(np.count_nonzero((recorded == found) | nan))
        if recorded.dtype.kind != "f":
            self.floats = False
            return
        self.moved.add(recorded, found)
        if expected is not None:
            self.own.add(expected, recorded)

    def row(self, artifact: str, name: str) -> OutputCheck:
        """Return the sums as a row."""
        equal = self.same / self.count if self.count else 1.0
        if not self.floats:
            return OutputCheck(artifact, name, equal)
        least = min(SAME_DB, self.own.db) if self.own.count else SAME_DB
        return OutputCheck(artifact, name, equal, self.moved.db, least)
