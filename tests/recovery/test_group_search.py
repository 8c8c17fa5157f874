"""The cheapest mix of forms that reaches a goal, on errors that add up and times that are known."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshot.planning.groups import PlanGroup
from onnxshot.planning.plan import DYNAMIC, STORED
from onnxshot.recovery.group_search import BORDER, SAME, Forms, GroupSearch, OutOfTime

MOST = 60


class Known:
    """Nodes with a noise in int8 each, and a price in float. Noise of nodes adds up, times a factor; counts models."""

    def __init__(
        self, noise: dict[str, float], price: dict[str, float], factor: float = 1.0, rest: float = 0.0
    ) -> None:
        self.noise, self.price, self.factor, self.rest, self.models = noise, price, factor, rest, 0

    def forms(self, group: PlanGroup) -> Sequence[str]:
        return (STORED,)

    def has_weights(self, group: PlanGroup) -> bool:
        return not any(label.startswith("add") for label in group.nodes)

    def none(self) -> float:
        self.models += 1
        return self.rest

    def alone(self, moves: Iterable[tuple[PlanGroup, str]]) -> Iterator[float]:
        for group, form in moves:
            self.models += 1
            assert not form
            yield sum(self.noise[label] for label in group.nodes) + self.rest

    def milliseconds(self, group: PlanGroup, form: str) -> float:
        return sum(self.price[label] for label in group.nodes)

    def together(self, forms: Forms) -> float:
        self.models += 1
        moved = {label for label, _ in forms}
        left = self.rest + self.factor * sum(noise for label, noise in self.noise.items() if label not in moved)
        return float("inf") if left == 0 else -10 * math.log10(left)


def groups_of(names: Sequence[str], size: int = 1) -> list[PlanGroup]:
    return [PlanGroup("chain", tuple(names[i : i + size])) for i in range(0, len(names), size)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-6, 1.0), st.floats(0.1, 1.0)), min_size=2, max_size=8), st.floats(5, 30))
def test_the_cheapest_mix_of_groups_is_found(nodes: list[tuple[float, float]], goal: float) -> None:
    names = [f"n{i}" for i in range(len(nodes))]
    noise, price = (dict(zip(names, values, strict=True)) for values in zip(*nodes, strict=True))
    known = Known(noise, price)
    total = sum(price.values())
    found = GroupSearch(known, total, MOST).find(groups_of(names), goal)
    mixes = (set(m) for n in range(len(names)) for m in itertools.combinations(names, n))  # all in float is no result
    enough = [m for m in mixes if sum(noise[n] for n in names if n not in m) <= 10 ** (-goal / 10)]
    assert bool(found) == bool(enough)
    if enough:
        best = min(sum(price[n] + BORDER * total for n in m) for m in enough)
        assert found[0].ms <= best + SAME * total + 1e-9
        assert found[0].sqnr_db >= goal


def test_a_prediction_that_was_too_good_is_corrected() -> None:
    names = [f"n{i}" for i in range(6)]
    noise = dict(zip(names, (0.02, 0.01, 0.005, 0.002, 0.001, 0.0005), strict=True))
    known = Known(noise, dict.fromkeys(names, 1.0), factor=4.0)
    found = GroupSearch(known, 6.0, MOST).find(groups_of(names), 20.0)
    assert {label for label, _ in found[0].forms} == {"n0", "n1", "n2", "n3"}
    assert known.models <= 2 * len(names)


def test_what_a_goal_does_not_need_returns() -> None:
    """By themselves, n1 costs more than n2; together with the others, n2 costs all: n1 had moved in vain."""

    class Together(Known):
        def together(self, forms: Forms) -> float:
            real = Known({"n0": 0.02, "n1": 0.0001, "n2": 0.012, "n3": 0.0001}, self.price)
            return real.together(forms)

    names = ["n0", "n1", "n2", "n3"]
    known = Together(dict(zip(names, (0.02, 0.004, 0.003, 0.001), strict=True)), dict.fromkeys(names, 1.0))
    for returns, moved in ((False, {"n0", "n1", "n2"}), (True, {"n0", "n2"})):
        found = GroupSearch(known, 4.0, MOST, returns=returns).find(groups_of(names), 20.0)
        assert {label for label, _ in found[0].forms} == moved


class Spoiled(Known):
    """One node in int8 spoils the outputs, though it looks harmless alone."""

    def together(self, forms: Forms) -> float:
        db = super().together(forms)
        return db if "n0" in {label for label, _ in forms} else 3.0


def test_what_returns_are_the_groups_as_they_were_split_and_measurements_are_left_for_it() -> None:
    """The sum of the groups' noise misleads: all that may move does, and then returns node by node."""
    names = [f"n{i}" for i in range(8)]
    for most in (MOST, 26):
        known = Spoiled({name: 0.0005 for name in names} | {"k": 0.001}, {name: 1.0 for name in names} | {"k": 100.0})
        groups = [PlanGroup("chain", tuple(names)), PlanGroup("head", ("k",))]
        best, *_ = GroupSearch(known, 108.0, most, returns=True).find(groups, 20.0)
        moved = {label for label, _ in best.forms}
        assert "n0" in moved
        assert len(moved) <= 4
        assert known.models <= most


def test_groups_do_not_move_for_what_is_less_than_their_borders() -> None:
    known = Known({"a": 0.5, "b": 1e-6, "c": 1e-6, "d": 0.005}, {"a": 0.1, "b": -0.001, "c": 0.0, "d": 0.5})
    found = GroupSearch(known, 1.0, MOST).find(groups_of(["a", "b", "c", "d"]), 15.0)
    assert {label for label, _ in found[0].forms} == {"a"}


def test_groups_are_split_until_only_the_node_that_spoils_the_outputs_is_in_float() -> None:
    names = [f"n{i}" for i in range(64)]
    known = Known({name: 0.5 if name == "n37" else 1e-6 for name in names}, dict.fromkeys(names, 1.0))
    search = GroupSearch(known, 64.0, MOST)
    found = search.find(groups_of(names, 8), 15.0)
    assert {label for label, _ in found[0].forms} == {"n37"}
    assert search.measured == known.models <= 24, "fewer than there are nodes"


def test_of_mixes_that_take_the_same_time_the_most_accurate_is_taken() -> None:
    """15 dB is reached by either group; the one that costs nothing in float brings 37 dB."""
    known = Known({"spectrum": 0.0793, "head": 0.0002}, {"spectrum": 0.0, "head": 0.0})
    found = GroupSearch(known, 1.0, MOST).find(groups_of(["spectrum", "head"]), 15.0)
    assert found[0].sqnr_db > 36.9
    assert {label for label, _ in found[0].forms} == {"spectrum"}


def test_what_multiplies_by_weights_is_not_all_in_float() -> None:
    known = Known({"a": 0.5, "b": 0.5, "add": 1e-6}, {"a": -1.0, "b": -1.0, "add": 1.0})
    assert GroupSearch(known, 3.0, MOST).find(groups_of(["a", "b", "add"]), 15.0) == []


def test_the_only_group_with_weights_is_split_where_it_may_not_all_be_in_float() -> None:
    known = Known({"spectrum": 0.5, "mel": 1e-4}, {"spectrum": 0.5, "mel": 0.5})
    found = GroupSearch(known, 1.0, MOST).find(groups_of(["spectrum", "mel"], 2), 15.0)
    assert {label for label, _ in found[0].forms} == {"spectrum"}


def test_scales_at_run_time_are_chosen_where_they_cost_less_than_float() -> None:
    class Products(Known):
        def forms(self, group: PlanGroup) -> Sequence[str]:
            return (STORED, DYNAMIC)

        def alone(self, moves: Iterable[tuple[PlanGroup, str]]) -> Iterator[float]:
            for group, form in moves:
                yield sum(self.noise[label] for label in group.nodes) * (0.01 if form else 1.0)

        def milliseconds(self, group: PlanGroup, form: str) -> float:
            return super().milliseconds(group, form) * (0.2 if form == DYNAMIC else 1.0)

        def together(self, forms: Forms) -> float:
            form = dict(forms)
            left = {"": 1.0, DYNAMIC: 0.01, STORED: 0.0}
            return -10 * math.log10(sum(noise * left[form.get(n, "")] for n, noise in self.noise.items()))

    known = Products({"a": 0.5, "b": 0.001}, {"a": 1.0, "b": 1.0})
    found = GroupSearch(known, 2.0, MOST).find(groups_of(["a", "b"]), 15.0)
    assert found[0].forms == {("a", DYNAMIC)}


def test_what_was_found_before_the_time_ended_is_kept() -> None:
    class Slow(Known):
        def together(self, forms: Forms) -> float:
            if self.models > 12:
                raise OutOfTime
            return super().together(forms)

    names = [f"n{i}" for i in range(64)]
    search = GroupSearch(Slow({n: 0.5 if n == "n37" else 1e-6 for n in names}, dict.fromkeys(names, 1.0)), 64.0, MOST)
    found = search.find(groups_of(names, 8), 15.0)
    assert search.out_of_time
    assert ("n37", STORED) in found[0].forms


def test_noise_of_what_is_in_no_group_is_known_before_any_group_is_measured() -> None:
    names = ["a", "b", "c"]
    known = Known(dict(zip(names, (0.05, 0.02, 0.001), strict=True)), dict.fromkeys(names, 1.0), rest=0.009)
    search = GroupSearch(known, 3.0, MOST)
    assert search.find(groups_of(names), 21.0) == []
    assert known.models == 1
    assert {label for label, _ in search.find(groups_of(names), 19.0)[0].forms} == {"a", "b"}


def test_where_nothing_reaches_the_goal_nothing_is_found() -> None:
    known = Known(dict.fromkeys("abc", 0.1), dict.fromkeys("abc", 1.0))
    assert GroupSearch(known, 3.0, MOST).find(groups_of("abc"), 60.0) == [], "all in float is the float model"
    assert GroupSearch(known, 3.0, MOST).find([], 15.0) == []
