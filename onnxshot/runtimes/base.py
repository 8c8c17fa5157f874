"""What a runtime offers, so that a model can be emitted for it, run in it, and shown to run in int8 there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from onnxshot.errors import TargetError
from onnxshot.graph import Model
from onnxshot.graph.skip import Skip
from onnxshot.runtimes.executed import Execution

Feed = Mapping[str, NDArray[Any]]
Sizes = tuple[int, ...]
Dims = tuple[int | str | None, ...]
Ranges = Mapping[str, tuple[Sizes, Sizes, Sizes]]
"""By input: least, usual and largest sizes."""
_SHOWN = 3  # of the nodes of a kind, in one line


class Loaded(Protocol):
    """A model loaded in its runtime: a feed in, its outputs by name. Feeds may hold more than the model asks for."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `run` gives."""

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """The outputs by name. Raises ModelError where the run fails."""


@dataclass(frozen=True, slots=True)
class Finding(Skip):
    """What is wrong with a node for a runtime.

    refused: it stops the artifact, or makes it answer wrongly; else it only runs in float.
    """

    refused: bool = False


def raise_refused(found: Sequence[Finding], runtime: str, target: str) -> None:
    """Raise TargetError where a runtime refuses nodes, naming the first, and the target whose rules it takes."""
    refused = [finding for finding in found if finding.refused]
    if refused:
        first = refused[0]
        more = f", and {len(refused) - 1} nodes more" if len(refused) > 1 else ""
        hint = f"onnxshot quantize --target {target} places what it takes"
        raise TargetError(f"{runtime} refuses {first.node!r} ({first.op}): {first.reason}{more}", hint)


def notes_of(found: Sequence[Finding]) -> list[str]:
    """A line for each reason, with the nodes that it is true of."""
    by_reason: dict[str, list[str]] = {}
    for finding in found:
        by_reason.setdefault(finding.reason, []).append(finding.node)
    return [f"{some(nodes)}: {reason}" for reason, nodes in by_reason.items()]


def some(nodes: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return ", ".join(nodes[:_SHOWN]) + more


@dataclass(frozen=True, slots=True)
class EmitOptions:
    """How an artifact is made; each runtime takes what it knows, and refuses what it cannot do.

    Attributes:
        shapes: sizes of inputs, for runtimes that compile for a range of them.
        sampled: sizes that the samples have, of inputs that `shapes` does not name.
        hardware: what it is compiled for, in the runtime's words (TensorRT-RTX: compute capabilities such as sm89;
            TensorRT: ampere_plus, same_compute_capability, version_compatible).
        half: store float weights in 16 bits where the runtime does that by itself (OpenVINO).
        timing_cache: a file of measurements that a builder reads and adds to.
        minutes, memory_gb: most that a builder may take.
        threads: CPU threads of every inference.
    """

    shapes: Ranges = field(default_factory=dict)
    sampled: Ranges = field(default_factory=dict)
    hardware: tuple[str, ...] = ()
    half: bool = False
    timing_cache: Path | None = None
    minutes: float = 30.0
    memory_gb: float = 16.0
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Emitted:
    """What was written.

    Attributes:
        files: names of the files, the one that is loaded first.
        executed: what each layer was compiled to; None where the runtime does not tell.
        notes: what a user should know of it.
    """

    files: tuple[str, ...]
    executed: Execution | None = None
    notes: tuple[str, ...] = ()


class Runtime(ABC):
    """One runtime: the only place that imports it, and that lazily.

    format: what `--emit` calls its artifact; suffix: of the file that is loaded; extra: what to install; ranged:
    whether it compiles for a range of sizes.
    """

    format: str
    suffix: str
    extra: str
    ranged: bool = False

    @abstractmethod
    def check(self) -> None:
        """Raise TargetError, saying what to install, where the runtime is not here."""

    def check_sizes(self, inputs: Mapping[str, Dims | None], options: EmitOptions) -> None:  # noqa: B027
        """Raise UsageError where `emit` would, as it needs sizes that neither the inputs nor the options have."""

    @abstractmethod
    def preflight(self, model: Model) -> list[Finding]:
        """The nodes whose quantization this runtime refuses, computes wrongly or runs in float, with the reason."""

    @abstractmethod
    def emit(self, source: Path, folder: Path, stem: str, options: EmitOptions) -> Emitted:
        """Make the artifact of an .onnx file in `folder`, every file named `stem` with a suffix.

        Raises TargetError where the runtime refuses the model, naming the node where it is known.
        """

    @abstractmethod
    def runs_here(self) -> str:
        """Empty where `load` works on this machine, else why it does not."""

    @abstractmethod
    def load(self, path: Path, *, threads: int, options: EmitOptions | None = None) -> Loaded:
        """Load an artifact, or an .onnx file, to be run. Raises ModelError where that fails.

        options: how the artifact of an .onnx file is made, where the runtime needs one.
        """
