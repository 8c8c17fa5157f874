"""One part of a model in a session, for walks that open parts of several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxshot.errors import ModelError
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_session import Feed, SessionRunner
from onnxshot.runtimes.parted_run import as_declared
from onnxshot.runtimes.parts import Parts
from onnxshot.runtimes.spool import Spool

Values = dict[str, NDArray[Any]]


class PartSession:
    """A part of a model, and the samples that it runs on. What crosses from part to part waits in a spool.

    Args:
        parts: The parts of the model.
        number: Of the part.
        feeds: Samples of the whole model.
        spool: Where parts of this model leave what later ones read. It serves this model alone.
        outputs: Tensors that are wanted; those of other parts are ignored.
        **how: Arguments of `SessionRunner`.

    Raises:
        ModelError: A sample lacks an input, or the part does not load.
    """

    def __init__(
        self, parts: Parts, number: int, feeds: Sequence[Feed], spool: Spool, outputs: Sequence[str], **how: Any
    ) -> None:
        self._parts, self._part, self._feeds, self._spool = parts, parts.parts[number], feeds, spool
        wanted = (*self._part.passes, *(name for name in outputs if name in self._part.makes))
        self._wanted = list(dict.fromkeys(wanted))
        self._runner: SessionRunner | None = None
        if self._part.nodes and self._wanted:
            with serialized(parts.model_of(number, self._wanted, self.feed(0))) as (source, folder):
                self._runner = SessionRunner(source, folder=folder, label=parts.label, **how)
            self._wanted = [name for name in self._wanted if name not in self._runner.skipped]

    def end_profiling(self) -> Path | None:
        """Close the profile of a part that was given one, and return its path; None for a part that runs nothing."""
        return None if self._runner is None else self._runner.end_profiling()

    def feed(self, sample: int) -> Feed:
        """What the part reads of a sample."""
        feed, found = self._feeds[sample], Values()
        for name in self._part.reads:
            if (sample, name) in self._spool:
                found[name] = self._spool.get((sample, name))
            elif name in feed:
                found[name] = feed[name]
            else:
                raise ModelError(f"{self._parts.label} asks for input {name!r}, which the sample does not hold")
        return as_declared(found, self._parts.kinds)

    def run(self, feed: Feed) -> Values:
        """Run the part on what `feed` gives."""
        return self._runner.run(feed, self._wanted) if self._runner is not None else {}

    def leave(self, sample: int, values: Values) -> None:
        """Leave what later parts read of a sample in the spool."""
        for name in self._part.passes:
            self._spool.put((sample, name), values[name])
