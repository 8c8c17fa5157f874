"""What each sample of a run is for: nothing is chosen or proved on samples that it was taken from."""

import itertools

import pytest

from onnxshot.calibration.readers import split
from onnxshot.calibration.sample_parts import LEAST_CHOOSING, MOST_CHOOSING, parts_of, trial_samples


@pytest.mark.parametrize("n", [1, 2, 7, 15, 16, 17, 64, 128, 500])
def test_every_sample_is_in_one_part(n: int) -> None:
    parts = parts_of(n)
    if n > 1:
        assert sorted([*parts.ranging, *parts.choosing, *parts.held_out]) == list(range(n))
    assert len(parts.choosing) <= MOST_CHOOSING
    assert len(parts.choosing) == 0 or LEAST_CHOOSING <= len(parts.choosing) <= len(parts.ranging) / 2


def test_choosing_samples_are_evenly_spaced() -> None:
    parts = parts_of(400)
    others = sorted([*parts.ranging, *parts.choosing])
    places = [others.index(number) for number in parts.choosing]
    assert len(places) == MOST_CHOOSING
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert max(gaps) - min(gaps) <= 1
    assert places[0] < gaps[0]
    assert places[-1] >= 300 - max(gaps)


def test_without_choices_all_that_are_not_held_out_are_for_ranges() -> None:
    parts = parts_of(64, choices=False)
    assert (parts.ranging, parts.choosing, parts.held_out) == (split(64)[0], [], split(64)[1])


@pytest.mark.parametrize("calibrated", [48, 72])
@pytest.mark.parametrize("most", [12, 112])
def test_trials_run_on_samples_that_nothing_was_taken_from(calibrated: int, most: int) -> None:
    parts = parts_of(128)
    ranged = parts.ranging[:calibrated]  # the pass may have stopped early
    trial = trial_samples(128, ranged, parts.choosing, parts.held_out, most)
    assert trial.choosing == trial.checking
    assert not set(trial.choosing) & {*ranged, *trial.learned, *parts.held_out}
    assert not set(trial.learned) & set(parts.held_out)
    assert set(trial.learned[:12]) <= set(ranged)
    left = set(parts.ranging) - set(ranged) - set(trial.learned)
    assert set(trial.choosing) == left.union(parts.choosing)


def test_few_samples_choose_among_ranges_that_come_from_them() -> None:
    parts = parts_of(12)
    assert not parts.choosing
    trial = trial_samples(12, parts.ranging, parts.choosing, parts.held_out, 12)
    assert sorted(trial.choosing) == parts.ranging
    assert sorted([*trial.learned, *trial.checking]) == parts.ranging, "what decides on repairs was not learned from"
