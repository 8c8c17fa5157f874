"""Decide which outputs are class scores: only their highest value has a meaning, so only they have a top-1 agreement.

The decision uses the values of the float model and the operator that makes the output. An output is class scores if
every row along its last axis is a distribution (softmax or log-softmax); or if it has rank 2 and is no recurrent state;
or if it has rank 3 and a linear layer makes it, as logits of tokens. States, embeddings, waveforms and boxes are no
class scores. No class scores either are

- vectors of length 1, and what a division by a tensor, a Concat, a Tanh or a normalization makes: embeddings;
- an output without a softmax beside one that has one, unless it is named logits: boxes and points beside scores;
- coordinates, whose rows all follow one profile: the mean row has at least 9/10 of the variance within a row;
- points with 2 to 5 values each: the mean row has half of that variance, and what rows differ by from it repeats with
  that period, as the x of all points move together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from onnxshot.comparison.divergence import divergences, log_probabilities, row_blocks
from onnxshot.comparison.proto_edits import parsed
from onnxshot.errors import ModelError
from onnxshot.runtimes.ort_runtime import Runnable

_MOVES = {"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"}
_SHIFTS = {"Add", "Sub", "Mul", "Div"}  # by a constant: a bias or a temperature
_LINEAR = {"MatMul", "Gemm", "Einsum", "FusedMatMul", "FusedGemm", "MatMulNBits"}
_NO_SCORES = {
    "LSTM", "GRU", "RNN", "LayerNormalization", "SkipLayerNormalization", "LpNormalization", "ConvTranspose",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "Concat", "Div", "Tanh",
}  # fmt: skip
_STEP = 2.0**-11  # step of float16 relative to the largest value: closer scores are a tie
_FLAT = 0.1
"""Share of the margin expected of independent scores, below which a row is a curve with similar neighbours.

The highest of n independent values leads the second by about their standard deviation / sqrt(2 * ln(n)).
"""
_OFF = 1e-2  # tolerance of a sum of probabilities, or of a length of 1, also in float16
_PROFILE = 0.9
"""Share of the variance within a row that the mean row has, from which rows are coordinates.

Of 68 points of a face in a crop it is 0.94, of 71 points around an eye 0.95; of scores of classes that differ from row
to row it is the lower the more classes are seen.
"""
_PROFILE_ROWS, _PROFILE_WIDTH = 16, 8  # fewer rows or values do not tell a profile from chance
_POINTS = 0.5
"""As `_PROFILE`, for rows that repeat with a period. Of five outputs that are points it is 0.73 to 0.95."""
_REPEATS = 0.5
"""Correlation of columns one period apart, over rows, from which they are points.

Of 23 to 71 points it is 0.6 to 0.95, and at most 0.1 next to each other; of 360 neighbouring pitches 0.9 next to each
other, falling from there.
"""
_MOST_PERIOD = 5  # x, y, z, visibility, presence
_POINT_ROWS, _POINT_WIDTH = 8, 12
_EMBEDDING = 16  # values: shorter vectors have a length of 1 by chance, or hold an angle


@dataclass(slots=True)
class Scores:
    """Accumulated agreement of one output.

    Attributes:
        maker: Operator that makes the output, "linear" for a linear layer, "state" if an input of the same shape feeds
            the output back; empty if unknown.
        agreed: Rows with a clear highest score that both models have at the same place.
        decided: Rows with a clear highest score.
        answer: The first answer of the float model; None before one is clear.
        differs: Whether it gives another one too.
        rows: Rows in total.
        curves: Rows that are curves, whose neighbouring values are similar.
        distributions: Rows that are a distribution.
        rank: Rank of the output.
        width: Length of the last axis.
        varies: True if rank or length changed between samples.
        logits: The output is named so: its softmax is a distribution.
        nats: Sum of the divergences of the rows from the float model's, in nats (see `divergence`).
        compared: Rows in that sum.
        softmax_beside: Another output of the model is a distribution.
        columns: Sum of the rows; None before the first.
        within: Sum of the variances within the rows.
        apart: For each distance between columns from 0 on, the sum of their products; of rank 2 only.
        unit: Rows of length 1.
    """

    maker: str = ""
    agreed: int = 0
    decided: int = 0
    answer: int | None = None
    differs: bool = False
    rows: int = 0
    curves: int = 0
    distributions: int = 0
    rank: int = 0
    width: int | None = None
    varies: bool = False
    logits: bool = False
    nats: float = 0.0
    compared: int = 0
    softmax_beside: bool = False
    columns: NDArray[np.float64] | None = None
    within: float = 0.0
    apart: NDArray[np.float64] | None = None
    unit: int = 0

    def add(self, wanted: NDArray[Any], got: NDArray[Any] | None) -> None:
        """Add one sample: values of the float model, and of the candidate, or None if its shape differs."""
        if wanted.ndim not in (1, 2, 3) or wanted.shape[-1] < 2 or not wanted.size:
            self.varies = True
            return
        width = wanted.shape[-1]
        self.varies |= self.width not in (None, width) or (self.rank not in (0, wanted.ndim))
        self.width, self.rank = width, wanted.ndim
        wanted, got = wanted.reshape(-1, width), None if got is None else got.reshape(-1, width)
        for part in row_blocks(len(wanted), width):
            self._add_rows(wanted[part], None if got is None else got[part])

    def _add_rows(self, wanted: NDArray[Any], got: NDArray[Any] | None) -> None:
        rows, width = wanted.astype(np.float64), wanted.shape[-1]
        finite = np.isfinite(rows)
        with np.errstate(all="ignore"):
            second, first = np.moveaxis(np.partition(rows, -2, axis=-1)[:, -2:], -1, 0)
            plain = np.where(finite, rows, 0.0)
            margin = first - second
            clear = margin > _STEP * np.abs(plain).max(-1)
            sums = plain.sum(-1)
            logs = np.log(np.exp(rows - first[:, None]).sum(-1)) + first
            apart = plain.std(-1) / math.sqrt(2 * math.log(width))
        soft = (rows >= 0).all(-1) & (np.abs(sums - 1) < _OFF) & finite.all(-1)
        self.distributions += int(np.count_nonzero(soft | (np.abs(logs) < _OFF)))
        self.rows += len(rows)
        self._add_profile(plain)
        self.curves += int(np.count_nonzero(~(margin > _FLAT * apart)))
        self.decided += int(np.count_nonzero(clear))
        answers = rows.argmax(-1)
        if clear.any():
            self.answer = int(answers[clear][0]) if self.answer is None else self.answer
            self.differs |= bool((answers[clear] != self.answer).any())
        if got is None:
            return
        same = answers == got.argmax(-1)
        self.agreed += int(np.count_nonzero(same & clear))
        both = (log_probabilities(values, soft=bool(soft.all())) for values in (rows, got))
        apart = divergences(*both)
        known = np.isfinite(apart)
        self.nats += float(apart[known].sum())
        self.compared += int(np.count_nonzero(known))

    def _add_profile(self, rows: NDArray[np.float64]) -> None:
        if self.varies:
            return
        total = rows.sum(0)
        self.columns = total if self.columns is None else self.columns + total
        self.within += float(rows.var(1).sum())
        if self.rank == 2:
            products = _by_distance(lambda one, other: float((rows[:, one] * rows[:, other]).sum()))
            self.apart = products if self.apart is None else self.apart + products
        self.unit += int(np.count_nonzero(np.abs(np.linalg.norm(rows, axis=1) - 1) < _OFF))

    @property
    def are_distributions(self) -> bool:
        """Whether every row is a distribution."""
        return not self.varies and 0 < self.rows == self.distributions

    @property
    def agreement(self) -> float | None:
        """Top-1 agreement over the rows with a clear highest score, 0..1; None if the output is no class scores."""
        return self.agreed / self.decided if self.decided and self._are_scores() else None

    @property
    def undecided(self) -> int:
        """Rows without a clear highest score; 0 if the output is no class scores."""
        return self.rows - self.decided if self.rows and self._are_scores() else 0

    @property
    def monotonous(self) -> bool:
        """Whether the float model gives the same answer in all of several cases: agreement then shows little."""
        return self.agreement is not None and self.decided > 1 and not self.differs

    @property
    def divergence(self) -> float | None:
        """Mean Kullback-Leibler divergence of a row in nats; None if the output is neither logits nor a softmax."""
        named = self.logits and self.agreement is not None
        if not self.compared or self.varies or not (named or self.distributions == self.rows):
            return None
        return max(self.nats / self.compared, 0.0)

    def _are_scores(self) -> bool:
        if self.varies:
            return False
        if self.distributions == self.rows:
            return True
        if self.rank == 1 or self.maker in _NO_SCORES or self.maker == "state" or 2 * self.curves > self.rows:
            return False
        no_classes = self.softmax_beside or self._are_embeddings or self._follow_one_profile or self._are_points
        return (self.logits or not no_classes) and (self.rank == 2 or self.maker == "linear")

    @property
    def _are_embeddings(self) -> bool:
        return self.unit == self.rows and (self.width or 0) >= _EMBEDDING

    @property
    def _follow_one_profile(self) -> bool:
        if self.columns is None or self.rank != 2 or self.rows < _PROFILE_ROWS or len(self.columns) < _PROFILE_WIDTH:
            return False
        return bool((self.columns / self.rows).var() >= _PROFILE * self.within / self.rows > 0)

    @property
    def _are_points(self) -> bool:
        if self.columns is None or self.apart is None or self.rows < _POINT_ROWS or len(self.columns) < _POINT_WIDTH:
            return False
        mean = self.columns / self.rows
        if mean.var() < _POINTS * self.within / self.rows:
            return False
        shared = self.apart / self.rows - _by_distance(lambda one, other: float((mean[one] * mean[other]).sum()))
        next_to, *further = shared[1:]
        return bool(max(further) >= _REPEATS * shared[0] > 0 and max(further) > 2 * next_to)


def _by_distance(of: Callable[[slice, slice], float]) -> NDArray[np.float64]:
    """Something of all pairs of columns that are 0, 1, 2 and so on apart, as slices of the columns."""
    return np.array([of(slice(None, -k or None), slice(k, None)) for k in range(_MOST_PERIOD + 1)])


def know_each_other(outputs: Iterable[Scores | None]) -> None:
    """Tell the outputs of a model, once all samples are added, whether another one is a distribution."""
    known = [one for one in outputs if one is not None]
    soft = [one for one in known if one.are_distributions]
    for one in known:
        one.softmax_beside = any(other is not one for other in soft)


def makers_of(model: Runnable) -> Mapping[str, str]:
    """The operator that makes each output, as in `Scores.maker`; empty if the model cannot be read."""
    try:
        graph = parsed(model).graph
    except ModelError:
        return {}
    made = {name: node for node in graph.node for name in node.output}
    constants = {t.name for t in graph.initializer} | {
        name for node in graph.node if node.op_type == "Constant" for name in node.output
    }
    given = [_shape(port) for port in graph.input if port.name not in constants]
    found = {port.name: _maker(port.name, made, constants) for port in graph.output}
    if len(given) > 1:
        found |= {port.name: "state" for port in graph.output if _shape(port) in given and _shape(port)}
    return found


def _shape(port: onnx.ValueInfoProto) -> tuple[object, ...]:
    """Element type and dimensions; empty if the rank or the last dimension is not stated."""
    kind = port.type.tensor_type
    dims = tuple(dim.dim_value or dim.dim_param for dim in kind.shape.dim)
    return (kind.elem_type, *dims) if len(dims) > 1 and dims[-1] else ()


def _maker(name: str, made: Mapping[str, NodeProto], constants: set[str]) -> str:
    for _ in range(len(made) + 1):
        node = made.get(name)
        if node is None:
            return ""
        moved = [value for value in node.input if value not in constants]
        if node.op_type in _LINEAR:
            return "linear"
        if node.op_type not in _MOVES and not (node.op_type in _SHIFTS and len(moved) == 1):
            return node.op_type
        name = node.input[0] if node.op_type in _MOVES else moved[0]
    return ""
