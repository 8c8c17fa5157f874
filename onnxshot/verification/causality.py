"""Measure whether a model predicts the next token: the scores of earlier positions do not depend on the last token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.token_outputs import TokenOutput
from onnxshot.comparison.token_scores import kept_positions

_CHANGED = 1e-4  # of the spread of the scores: another order of additions changes less
_TRIED = 4  # samples, until one has two positions
_LOOKED_AT = 8  # positions before the changed one, which a model that sees all tokens changes most

Arrays = Mapping[str, NDArray[Any]]


def is_causal(run: Callable[[Arrays], Arrays], samples: Iterable[Sample], output: TokenOutput) -> bool:
    """Whether position i of the logits can predict token i + 1.

    In one sample, the last token that is no padding is replaced by another one. The logits of all earlier positions
    must stay. In a model that sees all tokens at once, such as one that fills in masked words, they change.

    Args:
        run: Runs the float model on a sample; called twice.
        samples: Samples; the first one with two positions is used.
        output: The logits, and the inputs that belong to them.

    Returns:
        True also if no sample has two positions: then no next token is known anyway.
    """
    for _, sample in zip(range(_TRIED), samples, strict=False):
        ids = sample.feed[output.ids]
        if ids.ndim != 2 or not len(ids):
            continue
        kept = np.flatnonzero(kept_positions(sample.feed, output)[0])
        if len(kept) < 2:
            continue
        last, other = int(kept[-1]), int(kept[0])
        wanted = run(sample.feed)[output.logits]
        if wanted.ndim != 3 or wanted.shape[1] != ids.shape[1]:
            return True
        changed = ids.copy()
        now = int(ids[0, last])
        changed[0, last] = ids[0, other] if ids[0, other] != now else (now + 1) % wanted.shape[-1]
        earlier = kept[-1 - _LOOKED_AT : -1]
        before = wanted[0, earlier].astype(np.float64)
        after = run({**sample.feed, output.ids: changed})[output.logits][0, earlier].astype(np.float64)
        finite = np.isfinite(before) & np.isfinite(after)
        before, after = before[finite], after[finite]
        return not before.size or bool(np.abs(after - before).max() <= _CHANGED * before.std())
    return True
