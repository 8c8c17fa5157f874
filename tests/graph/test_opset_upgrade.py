"""Raising the opset keeps the meaning of every operator: both models have the same outputs in ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from old_opset_ops import ROWS, Row
from onnx import parser

from onnxshot.errors import ModelError
from onnxshot.graph import opset_rules, opset_upgrade, opset_workarounds, shape_inference
from onnxshot.graph.load import load_model
from onnxshot.passes.normalize import normalize


def run(model: onnx.ModelProto, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs in ONNX Runtime without its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feed)]


def raised(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    loaded = load_model(model)
    shape_inference.infer(loaded)
    opset_upgrade.raise_opset(loaded, version)
    assert loaded.opset == version
    assert all(entry.domain != opset_workarounds.HIDDEN for entry in loaded.envelope.opset_import)
    return loaded.to_proto()


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Equal up to rounding: the kernels of two opsets may sum in different order."""
    near = 2e-3 if a.dtype == np.float16 else 1e-5
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.allclose(a, b, rtol=near, atol=near, equal_nan=True) if a.dtype.kind == "f" else np.array_equal(a, b)


def differences(rows: list[Row], version: int) -> list[str]:
    found = []
    for row in rows:
        before = run(row.model(), row.feed)
        made = raised(row.model(), version)
        after = run(made, row.feed)
        if not all(same(a, b) for a, b in zip(before, after, strict=True)):
            found.append(f"{row} -> {version}")
    return found


# Up to 1.22, ONNX Runtime's own AveragePool of opset 19 counts other padding than that of opset 7.
PADDING_DIFFERS = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 23)


def runs_alike(row: Row) -> bool:
    return not (PADDING_DIFFERS and row.op == "AveragePool" and row.attrs.get("count_include_pad"))


def test_every_old_operator_keeps_its_meaning() -> None:
    assert len(ROWS) > 500
    assert not differences([row for row in ROWS if row.opset < 21 and runs_alike(row)], 21)


@pytest.mark.slow
@pytest.mark.parametrize("version", [13, 19])
def test_every_old_operator_keeps_its_meaning_at_opsets_in_between(version: int) -> None:
    assert not differences([row for row in ROWS if row.opset < version and runs_alike(row)], version)


@pytest.mark.parametrize("version", [19, 20])
def test_a_rule_for_a_later_opset_is_not_applied(version: int) -> None:
    """GroupNormalization has its scales per group up to opset 20."""
    rows = [row for row in ROWS if row.op == "GroupNormalization" and row.opset < version]
    assert rows
    assert not differences(rows, version)


def test_every_rule_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a rule, one of its rows has other outputs, does not load or cannot be converted."""
    for rule in opset_workarounds.RULES:
        if rule.rewrite in (opset_rules._half_pixel, opset_rules._clip_limits_to_inputs, opset_rules._append_axes):
            continue  # ONNX Runtime still runs the first in newer opsets; it does not run the others in old ones
        others = tuple(other for other in opset_workarounds.RULES if other is not rule)
        monkeypatch.setattr(opset_workarounds, "RULES", others)
        rows = [row for row in ROWS if row.op == rule.op and rule.since <= row.opset < rule.below]
        wrong = 0
        for row in rows:
            try:
                wrong += bool(differences([row], 21))
            except Exception:  # refused, or not a model that runs
                wrong += 1
            if wrong:
                break
        assert wrong, rule
        monkeypatch.undo()


def test_nodes_and_outputs_keep_their_names() -> None:
    model = parser.parse_model(
        """<ir_version: 4, opset_import: ["": 9]>
        g (float[1,4,5,6] x) => (float[1,4,n,m] y, float[1,4,5,6] z)
        <float[4] larger = {1.0, 1.0, 1.5, 2.0}> {
            y = Upsample<mode = "linear">(x, larger)
            z = Hardmax<axis = 2>(x)
        }"""
    )
    for node, name in zip(model.graph.node, ("up", "hard"), strict=True):
        node.name = name
    made = raised(model, 13)
    resize = next(node for node in made.graph.node if node.name == "up")
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in resize.attribute}
    assert (resize.op_type, list(resize.output)) == ("Resize", ["y"])
    assert attrs == {"mode": b"linear", "coordinate_transformation_mode": b"asymmetric"}
    assert sorted(n.op_type for n in made.graph.node) == ["Flatten", "Hardmax", "Reshape", "Resize", "Shape"]
    assert [info.name for info in made.graph.output] == ["y", "z"]
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    flat = x.reshape(4, 30)
    expected = np.eye(30, dtype=np.float32)[flat.argmax(1)].reshape(x.shape)
    np.testing.assert_array_equal(run(made, {"x": x})[1], expected)


def test_resizing_one_axis_up_and_another_down_takes_two_nodes() -> None:
    """ONNX Runtime rounds down along an axis that grows, and up along one that shrinks."""
    row = Row("Resize", 10, [np.arange(80, dtype=np.float32).reshape(1, 1, 8, 10)])
    scales = np.array([1, 1, 1.7, 0.3], np.float32)
    made = raised(Row("Resize", 10, row.inputs, [scales]).model(), 13)
    assert [n.op_type for n in made.graph.node] == ["Resize", "Resize"]
    up = np.minimum(np.floor(np.arange(13) / np.float32(1.7)), 7).astype(int)
    down = np.minimum(np.ceil(np.arange(3) / np.float32(0.3)), 9).astype(int)
    np.testing.assert_array_equal(run(made, row.feed)[0], row.inputs[0][:, :, up][..., down])


def test_a_resize_mode_that_opset_13_removed_is_rewritten() -> None:
    (row, *_) = (r for r in ROWS if r.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn")
    (node,) = raised(row.model(), 13).graph.node
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attrs["coordinate_transformation_mode"] == b"half_pixel"
    assert attrs["nearest_mode"] == b"round_prefer_ceil"


@pytest.mark.parametrize(
    ("op", "attrs", "shape", "place"),
    [
        ("Mul", {"broadcast": 1, "axis": 1}, (3,), np.s_[:, None, None]),
        ("Add", {"broadcast": 1, "axis": -3}, (3,), np.s_[:, None, None]),
        ("Sub", {"broadcast": 1, "axis": 1}, (3, 3), np.s_[:, :, None]),
        ("Add", {"broadcast": 1, "axis": 0}, (3,), np.s_[:, None, None, None]),
        ("Add", {"broadcast": 1}, (3,), np.s_[:]),
        ("PRelu", {}, (3,), np.s_[:, None, None]),
        ("PRelu", {}, (1,), np.s_[:]),
    ],
)
def test_old_arithmetic_aligns_its_inputs_by_the_axis_attribute(
    op: str, attrs: dict[str, int], shape: tuple[int, ...], place: Any
) -> None:
    """All axes have size 3, so a wrong alignment would not fail. numpy is the reference: ONNX Runtime lacks opset 6."""
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(3, 3, 3, 3)).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    row = Row(op, 6, [x], [c], attrs=attrs)
    model = row.model()
    model.ir_version = 3
    model.graph.input.append(onnx.helper.make_tensor_value_info("c0", onnx.TensorProto.FLOAT, shape))
    expected = {
        "Mul": x * c[place], "Add": x + c[place], "Sub": x - c[place], "PRelu": np.where(x > 0, x, x * c[place])
    }[op]  # fmt: skip
    for version in (7, 13):
        np.testing.assert_allclose(run(raised(model, version), row.feed)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("limits", [{}, {"min": -0.5}, {"max": 0.25}, {"min": -0.5, "max": 0.25}])
@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_limits_of_clip_have_the_type_of_the_tensor(kind: type, limits: dict[str, float]) -> None:
    x = np.linspace(-2, 2, 9).astype(kind)
    made = raised(Row("Clip", 10, [x], attrs=limits).model(), 13)
    expected = np.clip(x, limits.get("min", -np.inf), limits.get("max", np.inf)).astype(kind)
    np.testing.assert_array_equal(run(made, {"x0": x})[0], expected)


def test_branches_are_raised_too() -> None:
    model = parser.parse_model(
        """<ir_version: 6, opset_import: ["": 9]>
        g (float[2,3,4,5] x, bool c) => (float[2,3,d,e] y) <float[4] s = {1.0, 1.0, 1.5, 2.0}> {
            y = If(c) <
                then_branch = a () => (float[2,3,d,e] u) {
                    h = Hardmax<axis = 1>(x) u = Upsample<mode = "linear">(h, s)
                },
                else_branch = b () => (float[2,3,d,e] w) { k = Softmax<axis = 2>(x) w = Upsample(k, s) }
            >
        }"""
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    loaded = load_model(model)
    normalize(loaded, opset=21)
    for c in (True, False):
        feed = {"x": x, "c": np.array(c)}
        np.testing.assert_array_equal(run(model, feed)[0], run(loaded.to_proto(), feed)[0])


@pytest.mark.parametrize(
    ("node", "opset", "why"),
    [
        ("y = BatchNormalization<spatial = 0>(x, v, v, v, v)", 7, r"'the_node' \(BatchNormalization\).*spatial is 0"),
        ("y = Upsample(x, scales) e = Scatter(x, i, x)", 10, r"Upsample"),
    ],
)
def test_a_node_without_a_newer_equivalent_is_refused_by_name(node: str, opset: int, why: str) -> None:
    model = parser.parse_model(
        f"""<ir_version: 7, opset_import: ["": {opset}]>
        g (float[1,2,3,4] x, float[2,3,4] v, int64[1,2,3,4] i, float[0] roi, float[4] scales) => (float[a,b,c,d] y)
        {{ {node} }}"""
    )
    model.graph.node[0].name = "the_node"
    with pytest.raises(ModelError, match=why):
        raised(model, 21)


def test_group_normalization_of_opset_18_is_a_valid_model() -> None:
    """ONNX's checker calls it deprecated; exporters write it and ONNX Runtime runs it."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[1,4,3,3] x, float[2] s, float[2] b) => (float[1,4,3,3] y) {
            y = GroupNormalization<num_groups = 2>(x, s, b)
        }"""
    )
    load_model(model)


WORKER = """
import sys
sys.path[:0] = {path!r}
from test_opset_upgrade import raise_node_cases
raise_node_cases(int(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_node_cases_as_older_opsets_have_them_keep_their_outputs(part: int) -> None:
    """Every node case of the onnx package, at each opset below 21 that takes it as it is: a process for each part."""
    code = WORKER.format(path=[str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parent)])
    command = [sys.executable, "-c", code, str(part), "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = eval(done.stdout.splitlines()[-1])  # a dict of numbers, written by this file
    print(counts)
    assert not [line for line in done.stdout.splitlines() if line.startswith("differs")], done.stdout
    assert counts["same"] > 500


def raise_node_cases(part: int, parts: int) -> None:
    """Raise a part of the node cases, and print a line for each that differs and a line of counts."""
    from node_case_worker import cases
    from node_case_worker import run as run_case

    changed: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            changed.setdefault(schema.name, set()).add(schema.since_version)
    counts: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp())
    for name, model, inputs in cases()[part::parts]:
        since = sorted({v for node in model.graph.node for v in changed.get(node.op_type, ())})
        for opset in sorted({max(v, 7) for v in since if v < 21} | {v - 1 for v in since if 7 < v <= 21}):
            given = onnx.ModelProto.FromString(model.SerializeToString())
            for entry in given.opset_import:
                if entry.domain in ("", "ai.onnx"):
                    entry.version = opset
            given.ir_version = min(given.ir_version, 9)
            onnx.save(given, folder / "given.onnx")
            try:
                onnx.checker.check_model(given)
                before = run_case(folder / "given.onnx", inputs)[1]
                again = run_case(folder / "given.onnx", inputs)[1]
            except Exception:
                counts["not run"] += 1
                continue
            if not alike(before, again):
                counts["random"] += 1
                continue
            try:
                onnx.save(raised(given, 21), folder / "made.onnx")
            except ModelError:
                counts["refused"] += 1
                continue
            equal = alike(before, run_case(folder / "made.onnx", inputs)[1])
            counts["same" if equal else "differs"] += 1
            if not equal:
                print(f"differs: {name} of opset {opset}", flush=True)
    print(dict(counts))


def alike(a: Any, b: Any) -> bool:
    """As `same`, for outputs of any type."""
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    return same(a, b) if a.dtype.kind in "fiub" else bool(a.tolist() == b.tolist())
