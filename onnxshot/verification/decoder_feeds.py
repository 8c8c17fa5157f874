"""Make feeds of a decoder with a cache: a prompt, and single tokens behind pasts of any length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.comparison.token_outputs import TokenOutput

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Window:
    """A sample of a decoder, of which parts are fed one after the other.

    Attributes:
        output: The logits, the ids and the cache.
        feed: The sample.
    """

    output: TokenOutput
    feed: Arrays

    @property
    def ids(self) -> NDArray[Any]:
        """The token ids, [batch, positions]."""
        return self.feed[self.output.ids]

    @property
    def before(self) -> int:
        """Positions in the sample's own pasts; 0 where a switch says that they are not used."""
        if any(_is_switch(name, value) and not value.any() for name, value in self.feed.items()):
            return 0
        mask = self.feed.get(self.output.mask) if self.output.mask else None
        if mask is not None and mask.ndim == 2:
            return max(int(mask.shape[1] - self.ids.shape[1]), 0)
        shapes = [self.feed[name].shape for name in self.output.presents if name in self.feed]
        lengths = [shape[-2] for shape in shapes if len(shape) >= 3]
        return int(min(lengths, default=0))

    def part(self, start: int, stop: int, pasts: Arrays) -> dict[str, NDArray[Any]]:
        """The feed of the positions from `start` up to `stop`.

        Args:
            start: First position, counted from the sample's first id.
            stop: One past the last.
            pasts: Arrays in place of the sample's past inputs.
        """
        count, behind = self.ids.shape[1], self.before
        found = dict[str, NDArray[Any]]()
        for name, value in self.feed.items():
            if name in self.output.presents:
                found[name] = pasts.get(name, value)
            elif self._is_of_encoder(name):
                found[name] = value
            elif _is_switch(name, value):
                found[name] = value if start == 0 else np.ones_like(value)
            elif "mask" in name and value.ndim >= 2 and value.shape[-1] == behind + count:
                found[name] = value[..., start:stop, : behind + stop] if value.ndim == 4 else value[:, : behind + stop]
            elif value.shape == self.ids.shape:
                found[name] = value[:, start:stop]
            elif "position" in name and value.ndim and value.shape[-1] == count:
                found[name] = value[..., start:stop]
            else:
                found[name] = value
        return found

    def following(self, pasts: Arrays, made: Arrays) -> dict[str, NDArray[Any]]:
        """The pasts of the next step. A cache that a step does not compute again, as of an encoder, stays.

        Args:
            pasts: The pasts of the step before; empty in front of the first one.
            made: The outputs of that step.
        """
        found = dict(pasts)
        for name, present in self.output.presents.items():
            if present in made and (made[present].size or name not in pasts):
                found[name] = made[present]
        return found

    def of_length(self, count: int) -> Window:
        """The sample with so many ids, which are repeated, and no pasts, to time a prompt.

        Positions and masks continue as those of a text without padding do.
        """
        ids = np.resize(self.ids[:1, :], (1, count)).repeat(len(self.ids), 0).astype(self.ids.dtype)
        old, behind = self.ids.shape[1], self.before
        found = dict[str, NDArray[Any]]()
        for name, value in self.feed.items():
            if name == self.output.ids:
                found[name] = ids
            elif name in self.output.presents:
                axis = past_axis(value)
                found[name] = value if axis is None or not behind else np.take(value, range(0), axis)
            elif self._is_of_encoder(name):
                found[name] = value
            elif "mask" in name and value.ndim == 2 and value.shape[1] == behind + old:
                found[name] = np.ones((len(value), count), value.dtype)
            elif "position" in name and value.ndim and value.shape[-1] == old:
                places = np.arange(count, dtype=value.dtype)
                found[name] = np.broadcast_to(places, (*value.shape[:-1], count)).copy()
            elif value.shape == self.ids.shape:
                found[name] = np.resize(value[:, :1], (len(value), count))
            else:
                found[name] = value
        return Window(self.output, found)

    def _is_of_encoder(self, name: str) -> bool:
        """Whether an input belongs to the text or sound that an encoder read, not to the ids."""
        apart = self.output.ids.startswith("decoder") and name in ("input_ids", "attention_mask")
        return apart or name.startswith("encoder")


def past_axis(value: NDArray[Any]) -> int | None:
    """The axis of positions of a cache: [..., positions, size]; None for an array of too small a rank."""
    return value.ndim - 2 if value.ndim >= 3 else None


def _is_switch(name: str, value: NDArray[Any]) -> bool:
    """Whether an input says if the pasts are used, as in decoders whose two forms are one file."""
    return "use_cache" in name and value.size == 1 and value.dtype.kind == "b"
