"""Part the samples of a run, so that nothing is chosen or proved on samples that it was taken from.

held out    A quarter, spread over all. The proof measures the result on them; nothing is taken or chosen from them.
choosing    Every third of the others, evenly spaced, MOST_CHOOSING at most. Trials compare candidates on them, and they
            decide whether a repair is kept.
ranging     The rest. Those that the calibration pass runs until ranges have settled are the calibrated ones. Repairs,
            such as corrected biases, are learned from calibrated samples first.

Samples of the rest that nothing was taken from choose too. Ranges that had not settled, and those of a changed model,
are completed with the choosing samples once everything has been chosen. So are the maxima of channels that inputs of
dynamic products are smoothed by.

Fewer than 3 * LEAST_CHOOSING samples beside the held-out ones are too few to part: ranges need them all. Trials then
run on the samples that ranges come from. They choose among ranges and small changes only, as fewer than 12 calibrated
samples rule out equalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxshot.calibration.readers import split
from onnxshot.calibration.sampling import spread

HOLDOUT = 0.25
"""Share of the samples, spread over all, that is held out."""
LEAST_CHOOSING = 4
"""Fewer samples tell two candidates apart too rarely."""
MOST_CHOOSING = 24
"""More samples are rarely looked at by a trial."""
_EVERY = 3


@dataclass(frozen=True, slots=True)
class SampleParts:
    """Numbers of samples by what they are for.

    Attributes:
        ranging: Ranges and repairs are taken from some of them.
        choosing: Candidates are compared on them.
        held_out: The result is measured on them.
    """

    ranging: list[int]
    choosing: list[int]
    held_out: list[int]


def parts_of(n: int, holdout: float = HOLDOUT, *, choices: bool = True) -> SampleParts:
    """Part n samples; errors as in `split`. Without `choices` there are no choosing ones."""
    others, held_out = split(n, holdout)
    count = min(len(others) // _EVERY, MOST_CHOOSING)
    if not choices or count < LEAST_CHOOSING:
        return SampleParts(others, [], held_out)
    choosing = [others[(2 * i + 1) * len(others) // (2 * count)] for i in range(count)]
    apart = set(choosing)
    return SampleParts([i for i in others if i not in apart], choosing, held_out)


@dataclass(frozen=True, slots=True)
class TrialSamples:
    """Numbers of the samples of a run's trials, each list in an order whose every prefix is evenly spaced.

    Attributes:
        learned: Repairs are learned from them.
        choosing: Candidates are compared on them: on calibrated samples where too few others are left.
        checking: They decide whether a repair is kept; nothing was learned from them.
    """

    learned: list[int]
    choosing: list[int]
    checking: list[int]


def trial_samples(
    n: int, calibrated: Sequence[int], choosing: Sequence[int], held_out: Sequence[int], most: int
) -> TrialSamples:
    """Say what the samples of a run are for in its trials.

    Args:
        n: Number of samples.
        calibrated: Those that ranges come from.
        choosing: Those that were left for choices.
        held_out: Those that nothing may be taken from.
        most: Repairs are learned from so many samples at most.
    """
    ours = [i for i in range(n) if i not in set(held_out)] or list(calibrated)
    ranged = [i for i in ours if i in set(calibrated)]
    left = [i for i in ours if i not in {*calibrated, *choosing}]
    learned = [*evenly(ranged), *evenly(left)][:most]
    unseen = evenly([i for i in ours if i not in {*calibrated, *learned}])
    if len(unseen) >= LEAST_CHOOSING:
        return TrialSamples(learned, unseen, unseen)
    others = [i for at, i in enumerate(ours) if at % _EVERY != _EVERY - 1]
    return TrialSamples(evenly(others)[:most], evenly(calibrated), evenly(ours[_EVERY - 1 :: _EVERY]))


def evenly(numbers: Sequence[int]) -> list[int]:
    """Return the numbers in an order whose every prefix is evenly spaced over all of them."""
    return [numbers[i] for i in spread(len(numbers))]
