from handmade import HANDMADE, Case
from handmade.core import weight
from planned_models import planned, quantized, small

from onnxshot.planning.groups import PlanGroup, halves, plan_groups
from onnxshot.planning.plan import FLOAT


def kinds(case: Case) -> dict[str, list[PlanGroup]]:
    ready, plan = planned(case)
    found: dict[str, list[PlanGroup]] = {}
    for group in plan_groups(ready, plan):
        found.setdefault(group.kind, []).append(group)
    return found


def test_groups_are_disjoint_ordered_and_hold_what_is_quantized() -> None:
    for name in ("resnet_block", "squeeze_excite", "attention_block", "yolo_head", "gru", "embedding"):
        ready, plan = planned(HANDMADE[name]())
        nodes = [label for group in plan_groups(ready, plan) for label in group.nodes]
        assert len(nodes) == len(set(nodes))
        quantized_weights = {n.node for n in plan.nodes if n.how != FLOAT and n.has_weight}
        assert quantized_weights == quantized_weights & set(nodes), name
        first = [group.nodes[0] for group in plan_groups(ready, plan)]
        order = [node.label for _, node in ready.walk()]
        assert first == sorted(first, key=order.index)


def test_what_a_log_is_computed_from_is_a_front_end() -> None:
    case = small(
        """g (float[n, 1, 400] x) => (float[n, 8] y) {
            s = Conv<strides = [4]>(x, dft)
            p = Mul(s, s)
            l = Log(p)
            c = Conv(l, w1)
            r = Relu(c)
            d = Conv(r, w2)
            m = GlobalAveragePool(d)
            y = Flatten(m)
        }""",
        {"dft": weight(16, 1, 64), "w1": weight(16, 16, 3, seed=1), "w2": weight(8, 16, 3, seed=2)},
        x=(2, 1, 400),
    )
    found = kinds(case)
    (front,) = found["front end"]
    ready, _ = planned(case)
    (first,) = [node.label for node in ready.graph.nodes if node.outputs[0].name == "s"]
    assert first in front.nodes
    others = {label for kind, groups in found.items() if kind != "front end" for g in groups for label in g.nodes}
    assert {node.label for node in ready.graph.nodes if node.outputs[0].name in ("c", "d")} <= others


def test_a_deep_net_before_a_log_is_no_front_end() -> None:
    case = small(
        """g (float[n, 8, 10, 10] x) => (float[n, 8, h, w] y) {
            a = Conv(x, w1)
            b = Relu(a)
            c = Conv(b, w2)
            d = Sigmoid(c)
            y = Log(d)
        }""",
        {"w1": weight(8, 8, 3, 3), "w2": weight(8, 8, 3, 3, seed=1)},
        x=(2, 8, 10, 10),
    )
    assert "front end" not in kinds(case)


def test_adds_of_one_stream_are_a_group() -> None:
    rows = ["r0 = Conv<pads = [1, 1, 1, 1]>(x, w0)"]
    for i in range(4):
        rows += [f"a{i} = Conv<pads = [1, 1, 1, 1]>(r{i}, w{i + 1})", f"r{i + 1} = Add(r{i}, a{i})"]
    rows.append("y = Conv<pads = [1, 1, 1, 1]>(r4, w5)")
    text = "g (float[n, 8, 10, 10] x) => (float[n, 8, 10, 10] y) {" + "\n".join(rows) + "}"
    case = small(text, {f"w{i}": weight(8, 8, 3, 3, seed=i) for i in range(6)}, x=(2, 8, 10, 10))
    ready, plan = planned(case)
    (stream,) = [g for g in plan_groups(ready, plan) if g.kind == "residual"]
    assert set(stream.nodes) == {node.label for node in ready.graph.nodes if node.op == "Add"}


def test_the_branch_of_squeeze_excite_is_a_group() -> None:
    case = small(
        """g (float[n, 16, 10, 10] x) => (float[n, 16, 10, 10] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w0)
            m = GlobalAveragePool(a)
            s = Conv(m, w1)
            r = Relu(s)
            e = Conv(r, w2)
            g = Sigmoid(e)
            f = Mul(a, g)
            y = Conv<pads = [1, 1, 1, 1]>(f, w3)
        }""",
        {"w0": weight(16, 16, 3, 3), "w1": weight(4, 16, 1, 1), "w2": weight(16, 4, 1, 1), "w3": weight(16, 16, 3, 3)},
        x=(2, 16, 10, 10),
    )
    ready, plan = planned(case, include=["*"])
    (branch,) = [g for g in plan_groups(ready, plan) if g.kind == "squeeze-excite"]
    made = {node.label: node.outputs[0].name for node in ready.graph.nodes}
    assert {"s", "e"} <= {made[label] for label in branch.nodes} <= {"s", "r", "e", "g", "m"}


def test_halves_join_to_the_group() -> None:
    group = PlanGroup("chain", ("a", "b", "c"))
    assert [g.nodes for g in halves(group)] == [("a",), ("b", "c")]
    assert halves(PlanGroup("chain", ("a",))) == []


def test_a_stored_layer_computes_in_float_with_a_small_weight() -> None:
    case = small(
        "g (float[n, 64, 8, 8] x) => (float[n, 64, 4, 4] y) {\n a = Conv(x, w1)\n r = Relu(a)\n y = Conv(r, w2)\n}",
        {"w1": weight(64, 64, 3, 3), "w2": weight(64, 64, 3, 3, seed=1)},
        x=(2, 64, 8, 8),
    )
    ready, plan = planned(case, layers={"a": {"mode": "stored"}})
    (label,) = [node.label for node in ready.graph.nodes if node.outputs[0].name == "a"]
    assert label in plan.labels(FLOAT)
    assert label in plan.stored
    _, plain = planned(case, layers={"a": {"mode": "float"}})
    assert label not in plain.stored
    modes = ("stored", "float")
    sizes = {mode: quantized(case, layers={"a": {"mode": mode}})[1].ByteSize() for mode in modes}
    assert sizes["float"] - sizes["stored"] > 2.5 * 64 * 64 * 9
