"""How an error spreads over samples: loud ones carry the SQNR over all of them, and hide that the others are lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxshot.maths.sqnr import SqnrSum

_STEP = 1 / 128
"""A sample with less than this share of what the median sample holds, by root mean square, is not counted.

It is one step of 8 bits: a sample that is quieter is about nothing to a model whose samples are like the median one.
"""


def spread(samples: Sequence[SqnrSum]) -> dict[str, float]:
    """How SQNR in dB is spread over the samples of one output; empty where no sample holds anything.

    Keys: least, tenth (percentile) and median of the SQNR of single samples; samples, how many of them count; held,
    root mean square of what the median sample holds, 0..1 of that of the loudest. Samples that hold next to nothing
    beside the median one do not count: see _STEP.
    """
    held = [one for one in samples if one.count and one.signal > 0]
    if not held:
        return {}
    level = np.sqrt([one.signal / one.count for one in held])
    typical = float(np.median(level))
    each = [one.db for one, own in zip(held, level, strict=True) if own >= _STEP * typical]
    return {
        "least": min(each), "tenth": float(np.percentile(each, 10)), "median": float(np.median(each)),
        "samples": len(each), "held": typical / float(level.max()),
    }  # fmt: skip
