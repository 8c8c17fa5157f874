import itertools
import random

from onnxshot.maths.min_cut import MinimumCut


def test_labels_have_the_least_cost() -> None:
    """Compared with all labellings of up to 8 things."""
    rng = random.Random(0)
    for _ in range(150):
        count = rng.randint(1, 8)
        alone = [(rng.randrange(count), rng.randrange(2), rng.randrange(10)) for _ in range(rng.randint(0, 10))]
        some = [rng.sample(range(count), rng.randint(1, count)) for _ in range(rng.randint(0, 8))]
        groups = [(things, rng.randrange(20)) for things in some]
        problem = MinimumCut()
        for thing in range(count):
            problem.add_label_cost(thing, 0, 0)
        for thing, label, cost in alone:
            problem.add_label_cost(thing, label, cost)
        for things, cost in groups:
            problem.add_split_cost(things, cost)
        found = problem.solve()
        costs = {
            labels: sum(cost for thing, label, cost in alone if labels[thing] == label)
            + sum(cost for things, cost in groups if len({labels[t] for t in things}) > 1)
            for labels in itertools.product((0, 1), repeat=count)
        }
        assert costs[tuple(found[thing] for thing in range(count))] == min(costs.values())


def test_a_fixed_label_is_kept_at_any_cost() -> None:
    problem = MinimumCut()
    problem.add_split_cost(("a", "b", "c"), 10**30)
    problem.fix_label("a", 0)
    problem.fix_label("c", 1)
    found = problem.solve()
    assert (found["a"], found["c"]) == (0, 1)
