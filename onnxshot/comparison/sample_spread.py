"""Measure how the SQNR of an output varies over samples: loud samples dominate the total and can hide the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxshot.maths.sqnr import SqnrSum

_STEP = 1 / 128
"""Samples quieter than this share of a loud sample, by root mean square, are not counted.

It is one step of 8 bits: a quieter sample is close to zero for a model whose samples are like the loud one.
"""
_LOUD = 90
"""Percentile of a loud sample: most samples may hold nothing, as pictures without text, and one may be an outlier."""


def spread(samples: Sequence[SqnrSum]) -> dict[str, float]:
    """Spread of the SQNR in dB over the samples of one output.

    Args:
        samples: Signal and noise of the output on each sample.

    Returns:
        Empty if no sample holds anything. Else a dict with keys "least", "tenth" (10th percentile) and "median" of the
        single samples' SQNR in dB; "samples", how many of them count (see _STEP); "held", root mean square of the
        median sample relative to the loudest, 0..1.
    """
    held = [one for one in samples if one.count and one.signal > 0]
    if not held:
        return {}
    level = np.sqrt([one.signal / one.count for one in held])
    counts = level >= _STEP * np.percentile(level, _LOUD, method="lower")
    each = [one.db for one, counted in zip(held, counts, strict=True) if counted]
    return {
        "least": min(each), "tenth": float(np.percentile(each, 10)), "median": float(np.median(each)),
        "samples": len(each), "held": float(np.median(level[counts]) / level.max()),
    }  # fmt: skip
