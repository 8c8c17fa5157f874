"""The interface that every runtime implements: emit an artifact, load it, run it, and report what it executes.

To add a runtime:

1. Subclass `Runtime` in a module of its own, `<name>_runtime.py`. Set `format`, `suffix`, `extra` and `ranged`.
2. Implement `check`, `preflight`, `emit`, `runs_here` and `load`. Override `check_sizes` only if `ranged` is true.
3. Import the runtime's package inside functions, never at the top of a module, so that importing onnxshot stays fast
   and works without the package.
4. Name the class in the target that uses it (see `onnxshot.targets`).

`openvino_runtime.py` is a complete example of a runtime that runs on the CPU, `tensorrt_runtime.py` of one that
compiles in a worker process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from onnxshot.arguments import check_fields, named_fields
from onnxshot.errors import TargetError, UsageError
from onnxshot.graph import Model
from onnxshot.graph.skip import Skip
from onnxshot.recipes.vocabulary import FormatName
from onnxshot.runtimes.executed import Execution

Feed = Mapping[str, NDArray[Any]]
"""Input arrays by input name."""
Sizes = tuple[int, ...]
"""The shape of one input, all dimensions known."""
Dims = tuple[int | str | None, ...]
"""The dimensions a model states for an input: a size, the name of a free dimension, or None for an unnamed one."""
Ranges = Mapping[str, tuple[Sizes, Sizes, Sizes]]
"""Smallest, usual and largest shape of each input, by input name."""
_SHOWN = 3  # of the nodes of a kind, in one line


class Loaded(Protocol):
    """A model loaded in its runtime, ready to run."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of the model."""

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Run the model on one sample.

        Args:
            feed: Input arrays by name. Entries that are no input of the model are ignored.

        Returns:
            Output arrays by the names they have in the .onnx file.

        Raises:
            ModelError: An input is missing or has the wrong type or shape, or the run fails.
        """


@dataclass(frozen=True, slots=True)
class Finding(Skip):
    """A node that a runtime cannot execute as quantized, with the reason.

    Attributes:
        node: Label of the node.
        op: Operator of the node.
        reason: Why, as a clause that a message can end with.
        refused: True if the runtime refuses the node or computes it wrongly, so that no artifact may be made. False if
            the runtime only falls back to float.
    """

    refused: bool = False


def raise_refused(found: Sequence[Finding], runtime: str, target: str) -> None:
    """Raise TargetError if any finding is a refusal.

    Args:
        found: What `Runtime.preflight` returned.
        runtime: Name of the runtime, for the message.
        target: Name of the quantization target whose rules avoid such nodes, for the hint.

    Raises:
        TargetError: At least one node is refused. Names the first one and counts the others.
    """
    refused = [finding for finding in found if finding.refused]
    if refused:
        first = refused[0]
        more = f", and {len(refused) - 1} more nodes" if len(refused) > 1 else ""
        hint = f"quantize for [[target={target}]]: that quantizes only what it accepts"
        raise TargetError(f"{runtime} refuses {first.node!r} ({first.op}): {first.reason}{more}", hint)


def notes_of(found: Sequence[Finding]) -> list[str]:
    """One line per distinct reason, with the nodes that share it."""
    by_reason: dict[str, list[str]] = {}
    for finding in found:
        by_reason.setdefault(finding.reason, []).append(finding.node)
    return [f"{some(nodes)}: {reason}" for reason, nodes in by_reason.items()]


def some(nodes: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return ", ".join(nodes[:_SHOWN]) + more


@named_fields
@dataclass(frozen=True, slots=True)
class EmitOptions:
    """How an artifact is made. A runtime ignores what it does not need and refuses what it cannot do.

    Attributes:
        shapes: Shapes asked for, for runtimes that compile for a range of shapes (`Runtime.ranged`).
        sampled: Shapes found in the samples, used for inputs that `shapes` does not name.
        hardware: What to compile for, in the runtime's own words. TensorRT-RTX: compute capabilities such as "sm89".
            TensorRT: "ampere_plus", "same_compute_capability", "version_compatible".
        half: Store float weights in 16 bits, if the runtime can do that by itself (OpenVINO).
        timing_cache: File of kernel timings that the builder reads and adds to.
        minutes: Time limit of a build, in minutes.
        memory_gb: Limit of a builder's resident memory, in GB.
        threads: CPU threads of each inference.

    Raises:
        UsageError: there is no such field, or a value has the wrong type or is out of range.

    Example:
        >>> options = onnxshot.EmitOptions(hardware=("sm89",), minutes=5)
        >>> onnxshot.emit("model.onnx", to="tensorrt", output="model.engine", options=options)
    """

    shapes: Ranges = field(default_factory=dict)
    sampled: Ranges = field(default_factory=dict)
    hardware: tuple[str, ...] = ()
    half: bool = False
    timing_cache: str | Path | None = None
    minutes: float = 30.0
    memory_gb: float = 16.0
    threads: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.hardware, str):
            raise UsageError(f"hardware is str {self.hardware!r}", f"give a tuple of words: ({self.hardware!r},)")
        for name in ("minutes", "memory_gb", "threads"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name):g}", "a finite number above 0")


@dataclass(frozen=True, slots=True)
class Emitted:
    """The artifact that was written.

    Attributes:
        files: Names of the files in the output folder. The first is the one to load.
        executed: What each layer was compiled to; None if the runtime does not report it.
        notes: Remarks for the user, one sentence each.
    """

    files: tuple[str, ...]
    executed: Execution | None = None
    notes: tuple[str, ...] = ()


class Runtime(ABC):
    """Base class of runtimes that onnxshot can emit for.

    Only the subclass may import the runtime's package, and only when a method needs it.

    Attributes:
        format: Name of the artifact's format, as `--emit` takes it.
        suffix: File suffix of the artifact that is loaded, with its dot.
        extra: Name of the optional dependency group that installs the runtime: pip install onnxshot[extra].
        ranged: True if the runtime compiles for a range of input shapes, which must then be known before `emit`.
    """

    format: FormatName
    suffix: str
    extra: str
    ranged: bool = False

    @abstractmethod
    def check(self) -> None:
        """Check that the runtime is installed. Called before any work is done.

        Raises:
            TargetError: The runtime cannot be imported, or is too old. The hint says what to install.
        """

    def check_sizes(self, inputs: Mapping[str, Dims | None], options: EmitOptions) -> None:  # noqa: B027
        """Check that the shapes `emit` needs are known. Called before calibration; by default nothing is needed.

        Args:
            inputs: Dimensions of each input, by name; None for an input of unknown rank.
            options: The options that `emit` will get.

        Raises:
            UsageError: A shape is missing or does not fit the input.
        """

    @abstractmethod
    def preflight(self, model: Model) -> list[Finding]:
        """List the quantized nodes that this runtime refuses, computes wrongly or runs in float.

        Decide by the graph alone, without the runtime's package: this runs on machines that lack it. The model has Q/DQ
        pairs or integer operators. Shape inference may not have run.

        Args:
            model: The quantized model. Must not be changed.

        Returns:
            At most one finding per node, in graph order. Empty if everything runs as quantized.
        """

    @abstractmethod
    def emit(self, source: Path, folder: Path, stem: str, options: EmitOptions) -> Emitted:
        """Make the artifact of an .onnx file.

        Args:
            source: The quantized .onnx file; its weights may lie in external data files beside it.
            folder: An existing folder to write into. The files are moved to their final place later: write no absolute
                paths.
            stem: Name of every file that is written, without its suffix.
            options: How to make it.

        Returns:
            The files written, and what each layer was compiled to.

        Raises:
            TargetError: The runtime refuses the model. Names the node if it is known.
            UsageError: A shape is missing or does not fit (see `check_sizes`).
            ModelError: The .onnx file cannot be read.
        """

    def time_notes(self, before: Loaded, after: Loaded) -> list[str]:
        """What the runtime itself knows about the time of two loaded models that were run in turns; by default nothing.

        Args:
            before: The float model.
            after: The artifact.
        """
        return []

    @abstractmethod
    def runs_here(self) -> str:
        """Why `load` cannot work on this machine (no GPU, no driver, package missing); empty if it can."""

    @abstractmethod
    def load(self, path: Path, *, threads: int, options: EmitOptions | None = None) -> Loaded:
        """Load an artifact, or an .onnx file, to run it.

        Args:
            path: An artifact that `emit` made, or an .onnx file.
            threads: CPU threads of each inference; ignored by runtimes that run on a GPU.
            options: How to build an artifact of an .onnx file, if the runtime needs one first.

        Returns:
            The loaded model. Floats are computed in float32 if the runtime lets us choose.

        Raises:
            TargetError: The runtime does not run on this machine.
            ModelError: The file does not load.
        """
