"""Measure how well a candidate still predicts tokens: perplexity, Kullback-Leibler divergence, and equal first tokens.

Position i of the logits predicts token i + 1. Padding is left out: positions where the mask is 0, and positions whose
next token is padding. Values are computed in blocks of rows: the logits of a single text can take 50 MB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.comparison.divergence import divergences, log_softmax, row_blocks
from onnxshot.comparison.token_outputs import TokenOutput

Arrays = Mapping[str, NDArray[Any]]


@dataclass(slots=True)
class TokenScores:
    """Accumulated figures of the logits of tokens.

    Attributes:
        output: The logits, and the inputs that belong to them.
        causal: Position i predicts token i + 1. If not, there is no perplexity.
        positions: Positions compared.
        scored: Positions whose next token is known.
        agreed: Positions at which both models score the same token highest.
        float_loss: Sum of -ln p of the next tokens, by the float model, in nats.
        loss: The same of the candidate.
        nats: Sum of the divergences of the positions.
        lost: Positions at which the candidate's scores are no numbers.
        width: Size of the vocabulary.
    """

    output: TokenOutput
    causal: bool = True
    positions: int = 0
    scored: int = 0
    agreed: int = 0
    float_loss: float = 0.0
    loss: float = 0.0
    nats: float = 0.0
    lost: int = 0
    width: int = 0

    def add(self, feed: Arrays, wanted: NDArray[Any], got: NDArray[Any]) -> None:
        """Add the logits of both models on one sample; left out if their shapes do not belong to the ids.

        Args:
            feed: The sample.
            wanted: [batch, positions, vocabulary] logits of the float model; of all positions or of the last ones.
            got: The same of the candidate.
        """
        ids = feed.get(self.output.ids)
        wanted, got = (values[:, None] if values.ndim == 2 else values for values in (wanted, got))  # the last position
        if ids is None or ids.ndim != 2 or wanted.ndim != 3 or wanted.shape != got.shape or not wanted.size:
            return
        batch, count, width = wanted.shape
        if ids.shape[0] != batch or count > ids.shape[1]:
            return
        seen = kept_positions(feed, self.output)
        following = np.full(ids.shape, -1, np.int64)
        following[:, :-1] = np.where(seen[:, :-1] & seen[:, 1:], ids[:, 1:], -1)
        at = np.flatnonzero(seen[:, -count:])
        self.add_rows(wanted.reshape(-1, width), got.reshape(-1, width), at, following[:, -count:].reshape(-1))

    def add_rows(
        self, wanted: NDArray[Any], got: NDArray[Any], at: NDArray[np.intp], following: NDArray[np.int64]
    ) -> None:
        """Add some rows of logits.

        Args:
            wanted: [rows, vocabulary] of the float model.
            got: The same of the candidate.
            at: Indices of the rows that count.
            following: [rows] the next token; -1 where it is not known.
        """
        self.width = wanted.shape[-1]
        for part in row_blocks(len(at), self.width):
            here = at[part]
            self._add_block(log_softmax(wanted[here]), log_softmax(got[here]), following[here])

    def _add_block(
        self, wanted: NDArray[np.float64], got: NDArray[np.float64], following: NDArray[np.int64]
    ) -> None:
        self.positions += len(wanted)
        valid = ~np.isnan(got).any(-1)
        self.lost += int(np.count_nonzero(~valid))
        self.agreed += int(np.count_nonzero(valid & (wanted.argmax(-1) == got.argmax(-1))))
        self.nats += float(divergences(wanted, got)[valid].sum())
        known = np.flatnonzero((following >= 0) & (following < self.width))
        self.scored += len(known)
        self.float_loss -= float(wanted[known, following[known]].sum())
        self.loss -= float(got[known, following[known]].sum())

    @property
    def float_perplexity(self) -> float | None:
        """Perplexity of the float model: exp of its mean loss; None if nothing was scored, or it is not finite."""
        return self._perplexity(self.float_loss)

    @property
    def perplexity(self) -> float | None:
        """Perplexity of the candidate."""
        return self._perplexity(self.loss)

    def _perplexity(self, loss: float) -> float | None:
        if not (self.causal and self.scored):
            return None
        mean = loss / self.scored
        return math.exp(mean) if mean < _MOST_NATS else None

    @property
    def rise(self) -> float | None:
        """By which share the perplexity rises over that of the float model: 0.02 for 2 %; None if unknown."""
        before, after = self.float_perplexity, self.perplexity
        return None if before is None or after is None else after / before - 1.0

    @property
    def informative(self) -> bool:
        """Whether the float model predicts these tokens better than one that scores all tokens alike."""
        before = self.float_perplexity
        return before is not None and before < self.width

    @property
    def divergence(self) -> float | None:
        """Mean divergence of a position, in nats; None if nothing was compared."""
        count = self.positions - self.lost
        return max(self.nats / count, 0.0) if count else None

    @property
    def agreement(self) -> float | None:
        """Share of the positions at which both models score the same token highest, 0..1."""
        return self.agreed / self.positions if self.positions else None

    def figures(self) -> dict[str, Any]:
        """The figures, with the keys that reports use; those that are unknown are left out."""
        found = {
            "positions": self.positions, "scored": self.scored if self.causal else 0,
            "float_perplexity": self.float_perplexity, "perplexity": self.perplexity, "perplexity_rise": self.rise,
            "kl_nats": self.divergence, "agreement": self.agreement,
        }  # fmt: skip
        return {key: value for key, value in found.items() if value is not None}


_MOST_NATS = 700.0  # exp of more does not fit a float64


def kept_positions(feed: Arrays, output: TokenOutput) -> NDArray[np.bool_]:
    """Which positions of the ids are no padding: [batch, positions]. All of them, if no mask covers them."""
    ids = feed[output.ids]
    mask = feed.get(output.mask) if output.mask else None
    if mask is None or mask.ndim != 2 or mask.shape[0] != ids.shape[0] or mask.shape[1] < ids.shape[1]:
        return np.ones(ids.shape, np.bool_)
    found: NDArray[np.bool_] = mask[:, mask.shape[1] - ids.shape[1] :] != 0
    return found
