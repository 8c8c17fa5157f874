from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxshot import memory
from onnxshot.calibration.readers import InputSpec, Sample, open_data
from onnxshot.errors import CalibrationError, ModelError
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.save import write
from onnxshot.runtimes import ort_session
from onnxshot.runtimes.open_models import OpenModels
from onnxshot.runtimes.ort_bench import bench
from onnxshot.verification.compare_models import Comparison, compare
from onnxshot.verification.compare_tensors import SAMPLES, compare_tensors
from onnxshot.verification.io_contract import contract, difference, reload_check, same_contract
from onnxshot.verification.output_errors import OutputRow
from onnxshot.verification.output_notes import optimizer_note


def values(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(0, 0.5, shape).astype(np.float32)


def parsed(text: str, **constants: NDArray[np.generic]) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ng {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return proto


def bytes_of(text: str, **constants: NDArray[np.generic]) -> bytes:
    return bytes(parsed(text, **constants).SerializeToString())


def samples(count: int = 4, *shape: int) -> list[Sample]:
    return [Sample(f"#{i}", {"x": values(*(shape or (2, 8)), seed=i)}) for i in range(count)]


LINEAR = "(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }"


def test_sqnr_covers_all_samples_together() -> None:
    w, near = values(8, 4), values(8, 4) + np.float32(0.01)
    result = compare(bytes_of(LINEAR, w=w), bytes_of(LINEAR, w=near), samples())
    xs = np.concatenate([s.feed["x"] for s in samples()]).astype(np.float64)
    expected = 10 * np.log10(np.sum((xs @ w) ** 2) / np.sum((xs @ w - xs @ near) ** 2))
    assert result.sqnr_db == pytest.approx(expected, abs=0.01)
    assert result.unoptimized_db == pytest.approx(expected, abs=0.01)
    assert result.samples == 4
    (row,) = result.outputs
    assert row.sqnr_db == result.sqnr_db
    assert row.max_abs_error == pytest.approx(np.abs(xs @ w - xs @ near).max(), rel=1e-3)
    assert not result.optimizer_changes_results
    assert result.contract == ""


def test_a_few_loud_samples_do_not_hide_errors_of_the_others() -> None:
    wanted = bytes_of("(float[N,4] x) => (float[N,4] y) { y = Identity(x) }")
    off = bytes_of("(float[N,4] x) => (float[N,4] y) { y = Add(x, b) }", b=np.float32([0.3, -0.3, 0.3, -0.3]))
    loud = [30.0, 1, 1, 1, 30, 1, 1, 1e-6]  # the last one holds nothing, and is noise alone
    feeds = [Sample(f"#{i}", {"x": values(2, 4, seed=i) * np.float32(s)}) for i, s in enumerate(loud)]
    (row,) = compare(wanted, off, feeds).outputs
    each = [10 * np.log10(np.mean(np.square(f.feed["x"].astype(np.float64))) / 0.09) for f in feeds]
    assert row.sqnr_db is not None
    assert row.sqnr_db > 15 > row.samples_db["median"]
    assert row.samples_db["samples"] == 7
    assert row.samples_db["least"] == pytest.approx(min(each[:-1]), abs=1e-3)
    assert row.samples_db["median"] == pytest.approx(np.median(each[:-1]), abs=1e-3)
    assert row.samples_db["tenth"] == pytest.approx(np.percentile(each[:-1], 10), abs=1e-3)
    rms = [np.sqrt(np.mean(np.square(f.feed["x"].astype(np.float64)))) for f in feeds]
    assert row.samples_db["held"] == pytest.approx(np.median(rms[:-1]) / max(rms), rel=1e-3)


def test_samples_that_hold_nothing_do_not_count_even_if_most_do() -> None:
    wanted = bytes_of("(float[N,4] x) => (float[N,4] y) { y = Identity(x) }")
    off = bytes_of("(float[N,4] x) => (float[N,4] y) { y = Add(x, b) }", b=np.float32([0.01, -0.01, 0.01, -0.01]))
    feeds = [Sample(f"#{i}", {"x": values(2, 4, seed=i) * np.float32(s)}) for i, s in enumerate([1, 1, *[1e-6] * 6])]
    (row,) = compare(wanted, off, feeds).outputs
    each = [10 * np.log10(np.mean(np.square(f.feed["x"].astype(np.float64))) / 1e-4) for f in feeds]
    assert row.samples_db["samples"] == 2
    assert row.samples_db["median"] == pytest.approx(np.mean(each[:2]), abs=1e-2)


def test_a_model_equals_itself() -> None:
    model = bytes_of(LINEAR, w=values(8, 4))
    result = compare(model, model, samples())
    assert result.sqnr_db is not None
    assert result.sqnr_db > 120
    assert result.agreement == 1.0
    assert result.not_finite == ()


def test_agreement_is_the_share_of_equal_highest_scores() -> None:
    reference = bytes_of("(float[N,4] x) => (float[N,4] y) { y = Identity(x) }")
    swapped = bytes_of("(float[N,4] x) => (float[N,4] y) { y = Mul(x, s) }", s=np.float32([1, 1, 1, -1]))
    xs = [np.float32([[9, 0, 0, 1], [0, 0, 0, 5]]), np.float32([[0, 9, 0, 1]])]
    feeds = [Sample(f"#{i}", {"x": x}) for i, x in enumerate(xs)]
    assert compare(reference, swapped, feeds).agreement == pytest.approx(2 / 3)


def test_pictures_have_no_agreement() -> None:
    model = bytes_of("(float[N,2,4,4] x) => (float[N,2,4,4] y) { y = Neg(x) }")
    assert compare(model, model, samples(1, 1, 2, 4, 4)).agreement is None


def test_samples_are_streamed() -> None:
    alive = 0

    def stream() -> Iterator[Sample]:
        nonlocal alive
        for sample in samples(20):
            alive += 1
            yield sample

    assert compare(bytes_of(LINEAR, w=values(8, 4)), bytes_of(LINEAR, w=values(8, 4)), stream()).samples == alive == 20


def test_no_samples_are_an_error() -> None:
    model = bytes_of(LINEAR, w=values(8, 4))
    with pytest.raises(CalibrationError):
        compare(model, model, [])


def test_nan_names_the_output_and_the_sample() -> None:
    reference = bytes_of("(float[N,8] x) => (float[N,8] y) { y = Abs(x) }")
    candidate = bytes_of("(float[N,8] x) => (float[N,8] y) { y = Sqrt(x) }")
    ones = np.ones((1, 8), np.float32)
    feeds = [Sample("good.png", {"x": ones}), Sample("bad.png", {"x": -ones})]
    result = compare(reference, candidate, feeds)
    assert result.not_finite == ("output 'y' on sample 'bad.png': 8 of 8 values are NaN or infinite",)
    assert result.outputs[0].max_abs_error == np.inf
    assert result.sqnr_db == -200.0


def test_infinities_of_both_are_equal() -> None:
    """Attention masks hold -inf in the float model too."""
    model = bytes_of("(float[N,8] x) => (float[N,8] y) { y = Log(x) }")
    result = compare(model, model, [Sample("a", {"x": np.float32([[0, 1, 2, 3, 4, 5, 6, 7]])})])
    assert result.not_finite == ()
    assert result.outputs[0].max_abs_error == 0.0


def test_ids_are_compared_for_equality() -> None:
    reference = bytes_of("(float[N,4] x) => (int64[N] y) { y = ArgMax<axis=1, keepdims=0>(x) }")
    other = bytes_of("(float[N,4] x) => (int64[N] y) { n = Neg(x)  y = ArgMax<axis=1, keepdims=0>(n) }")
    feed = [Sample("a", {"x": np.float32([[1, 0, 0, 0], [0, 0, 0, 0]])})]
    (row,) = compare(reference, other, feed).outputs
    assert (row.equal, row.sqnr_db) == (0.5, None)
    assert compare(reference, other, feed).sqnr_db is None


def test_sequences_are_compared_element_by_element() -> None:
    text = "(float[2,8] x) => (seq(float) s, float[2,8] y)"
    text += " {{ n = {}(x)  s = SplitToSequence<axis=1>(n, k)  y = Neg(x) }}"
    three = np.int64(3)
    model, other = (bytes_of(text.format(op), k=three) for op in ("Identity", "Abs"))
    result = compare(model, model, samples())
    assert [(row.name, row.sqnr_db) for row in result.outputs] == [("s", 200.0), ("y", 200.0)]
    assert result.notes == ()
    changed = compare(model, other, samples())
    x = np.concatenate([sample.feed["x"] for sample in samples()])
    expected = 10 * np.log10((x**2).sum() / ((x - np.abs(x)) ** 2).sum())
    assert changed.outputs[0].sqnr_db == pytest.approx(expected, abs=0.05)


def test_sequences_of_strings_are_compared_for_equality() -> None:
    text = "(float[2,8] x) => (seq(string) s, float[2,8] y)"
    text += " {{ t = Cast<to=8>({})  s = SequenceConstruct(t, t)  y = Neg(x) }}"
    model = bytes_of(text.format("x"))
    assert compare(model, model, samples()).outputs[0].equal == 1.0
    other = bytes_of(text.format("a").replace("{ t", "{ a = Abs(x) t"))
    assert 0 < compare(model, other, samples()).outputs[0].equal < 1


def test_outputs_whose_shape_depends_on_values_do_not_stop_the_run() -> None:
    text = "(float[N] x) => (float[M] y) { c = Greater(x, t)  y = Compress(x, c) }"
    feed = [Sample("a", {"x": np.float32([0.1, 0.2, 0.3, 0.4])})]
    result = compare(bytes_of(text, t=np.float32(0.0)), bytes_of(text, t=np.float32(0.25)), feed)
    assert result.outputs[0].other_shape == 1
    assert result.sqnr_db == 0.0  # an output of another shape is lost, and counts as that
    assert "other shapes on 1 of 1" in result.notes[0]


def test_a_changed_contract_is_named_and_what_is_common_is_compared() -> None:
    candidate = bytes_of("(float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }", w=values(8, 4))
    result = compare(bytes_of(LINEAR, w=values(8, 4)), candidate, samples(2, 1, 8))
    assert result.contract == "input 'x' float [N, 8] against input 'x' float [1, 8]"
    assert result.sqnr_db is not None


def test_models_without_a_common_output_are_refused() -> None:
    other = bytes_of("(float[N,8] x) => (float[N,8] z) { z = Neg(x) }")
    with pytest.raises(ModelError, match="no output in common"):
        compare(bytes_of(LINEAR, w=values(8, 4)), other, samples())


def test_a_gap_between_optimized_and_plain_is_flagged() -> None:
    """microsoft/onnxruntime #11576: accuracy drops when optimizations are on."""
    assert _comparison(18.0, 25.0).optimizer_changes_results
    assert not _comparison(24.5, 25.0).optimizer_changes_results
    assert not _comparison(25.0, 18.0).optimizer_changes_results, "better with them is how it is deployed"
    assert not _comparison(130.0, 150.0).optimizer_changes_results


def test_runs_without_optimizations_are_of_the_first_samples() -> None:
    reference, candidate = nets(0.1)
    result = compare(reference, candidate, samples(20), tensors=["b"])
    assert [row.tensor for row in result.tensors] == ["b"]
    assert result.samples == 20
    first = compare(reference, candidate, samples(SAMPLES))
    assert result.unoptimized_db == pytest.approx(first.sqnr_db, abs=0.01)
    assert result.optimized_db == pytest.approx(first.sqnr_db, abs=1e-6)
    assert result.sqnr_db != pytest.approx(first.sqnr_db, abs=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_figures_do_not_depend_on_threads_or_kind_of_samples(threads: int) -> None:
    reference, candidate = nets(0.1)
    with open_data(list(samples(20)), [InputSpec("x", np.dtype(np.float32), ("N", 8))]) as data:
        read = compare(reference, candidate, data, threads=threads)
    streamed = compare(reference, candidate, iter(samples(20)), threads=1)
    assert read.sqnr_db == pytest.approx(streamed.sqnr_db, rel=1e-9)
    assert read.outputs[0].max_abs_error == pytest.approx(streamed.outputs[0].max_abs_error, rel=1e-6)


def test_values_that_are_not_finite_are_left_out_of_the_largest() -> None:
    model = bytes_of("(float[N,8] x) => (float[N,8] y) { a = Log(x)  y = Neg(a) }")
    feed = [Sample("a", {"x": np.float32([[0, 1, 2, 3, 4, -5, 6, 7]])})]
    rows = {row.tensor: row for row in compare_tensors(model, model, feed, ["a"])}
    assert rows["a"].absmax == pytest.approx(np.log(7), rel=1e-6)


def _comparison(fast: float, plain: float) -> Comparison:
    return Comparison((OutputRow("y", 60.0, plain, fast),), 60.0, plain, fast, 1, 1)


# ---------------------------------------------------------------------- tensors

NET = "(float[N,8] x) => (float[N,4] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v) }"
QNET = """(float[N,8] x) => (float[N,4] y) {
    a = MatMul(x, w)  b = Relu(a)  q = QuantizeLinear(b, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(d, v) }"""


def nets(scale: float) -> tuple[bytes, bytes]:
    held = {"w": values(8, 8), "v": values(8, 4)}
    return bytes_of(NET, **held), bytes_of(QNET, **held, s=np.float32(scale), z=np.uint8(0))


def test_tensors_are_compared_after_q_and_dq_and_sorted_by_sqnr() -> None:
    reference, candidate = nets(0.1)
    rows = {row.tensor: row for row in compare_tensors(reference, candidate, samples())}
    b = np.concatenate([np.maximum(s.feed["x"] @ values(8, 8), 0) for s in samples()]).astype(np.float64)
    got = np.clip(np.round(b / 0.1), 0, 255) * 0.1
    assert rows["b"].sqnr_db == pytest.approx(10 * np.log10(np.sum(b**2) / np.sum((b - got) ** 2)), abs=0.05)
    assert rows["b"].absmax == pytest.approx(b.max(), rel=1e-5)
    assert (rows["b"].op, rows["b"].quantized, rows["b"].clipped) == ("Relu", True, 0.0)
    assert not rows["a"].quantized
    assert rows["a"].sqnr_db > 100
    ordered = [row.sqnr_db for row in rows.values()]
    assert ordered == sorted(ordered)


def test_the_clipped_share_counts_float_values() -> None:
    reference, candidate = nets(0.001)
    (row,) = compare_tensors(reference, candidate, samples(), ["b"])
    b = np.concatenate([np.maximum(s.feed["x"] @ values(8, 8), 0) for s in samples()])
    assert row.clipped == pytest.approx(np.mean(b > 0.2555), abs=0.01)


def test_names_the_candidate_lacks_are_left_out() -> None:
    reference, _ = nets(0.1)
    fused = bytes_of("(float[N,8] x) => (float[N,4] y) { y = MatMul(x, u) }", u=values(8, 4))
    assert [row.tensor for row in compare_tensors(reference, fused, samples(), ["a", "b", "y", "nowhere"])] == ["y"]


def test_few_samples_are_run_and_models_may_be_in_memory() -> None:
    drawn = []

    def stream() -> Iterator[Sample]:
        for sample in samples(50):
            drawn.append(sample)
            yield sample

    reference, candidate = nets(0.1)
    held = Model(onnx.load_from_string(reference))
    assert compare_tensors(held, Model(onnx.load_from_string(candidate)), stream())
    assert len(drawn) <= 9
    assert [t.name for t in held.graph.outputs] == ["y"]


def test_many_tensors_are_compared_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate = nets(0.1)
    whole = compare_tensors(reference, candidate, samples())
    monkeypatch.setattr(memory, "held_bytes", lambda: 1)
    assert compare_tensors(reference, candidate, samples()) == whole


def test_compare_returns_the_tensors_asked_for() -> None:
    reference, candidate = nets(0.1)
    result = compare(reference, candidate, iter(samples()), tensors=["b", "y"])
    assert {row.tensor for row in result.tensors} == {"b", "y"}


# ---------------------------------------------------------------------- contract and reload


def test_a_contract_lists_names_types_and_dims_in_order(tmp_path: Path) -> None:
    proto = parsed(LINEAR, w=values(8, 4))
    onnx.save(proto, str(tmp_path / "m.onnx"))
    found = contract(tmp_path / "m.onnx")
    assert [str(port) for port in found] == ["input 'x' float [N, 8]", "output 'y' float [N, 4]"]
    assert found == contract(proto) == contract(proto.SerializeToString()) == contract(Model(proto))


def test_weights_listed_as_inputs_are_not_in_the_contract() -> None:
    proto = parsed("(float[N,8] x, float[8,4] w) => (float[N,4] y) { y = MatMul(x, w) }", w=values(8, 4))
    assert [port.name for port in contract(proto)] == ["x", "y"]
    assert contract(proto) == contract(Model(proto))


def test_a_difference_is_named() -> None:
    more = "(float[N,8] x) => (float[N,4] y, float[N,4] z) { y = MatMul(x, w) z = Neg(y) }"
    a, b = contract(parsed(LINEAR, w=values(8, 4))), contract(parsed(more, w=values(8, 4)))
    assert difference(a, a) == ""
    assert difference(a, b) == "output 'z' float [N, 4] is new"
    assert difference(b, a) == "output 'z' float [N, 4] is missing"
    with pytest.raises(ModelError, match="'z'"):
        same_contract(a, b)


def test_a_written_file_equals_the_model_in_memory(tmp_path: Path) -> None:
    """microsoft/Olive #2223: weights were saved wrongly and nobody noticed."""
    model = Model(parsed(LINEAR, w=values(8, 4)))
    write(model, tmp_path / "m.onnx", external=True)
    reload_check(model, tmp_path / "m.onnx", {"x": values(2, 8)})
    data = bytearray((tmp_path / "m.onnx").read_bytes())
    position = data.find(values(8, 4).tobytes())
    assert position >= 0
    data[position + 2] ^= 1
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="weight 'w' differs"):
        reload_check(model, tmp_path / "m.onnx", {"x": values(2, 8)})


@pytest.mark.parametrize("external", [False, True])
def test_a_large_weight_is_compared_in_pieces(
    external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxshot.graph.weight_pieces.BLOCK", 2000)
    model = Model(parsed(LINEAR.replace("float[8,4] w", "float[8,1024] w"), w=values(8, 1024)))
    write(model, tmp_path / "m.onnx", external=external)
    reload_check(model, tmp_path / "m.onnx", {}, run=False)
    changed = values(8, 1024)
    changed[5, 7] += 1
    other = Model(parsed(LINEAR.replace("float[8,4] w", "float[8,1024] w"), w=changed))
    with pytest.raises(ModelError, match="weight 'w' differs"):
        reload_check(other, tmp_path / "m.onnx", {}, run=False)


def test_a_graph_that_is_written_in_another_way_must_give_the_same_outputs(tmp_path: Path) -> None:
    model = Model(parsed(LINEAR, w=values(8, 4)))
    proto = model.to_proto()
    proto.graph.node[0].doc_string = "another text"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    reload_check(model, tmp_path / "m.onnx", {"x": values(2, 8)})
    proto.graph.node.append(onnx.helper.make_node("Neg", [proto.graph.node[-1].output[0]], ["z"]))
    proto.graph.node[-2].output[0], proto.graph.node[-1].input[0], proto.graph.node[-1].output[0] = "t", "t", "y"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="output 'y' differs"):
        reload_check(model, tmp_path / "m.onnx", {"x": values(2, 8)})


def test_a_file_is_compared_weight_by_weight(tmp_path: Path) -> None:
    model = load_model(parsed(LINEAR, w=values(8, 4)))
    write(model, tmp_path / "m.onnx")
    reload_check(model, tmp_path / "m.onnx", {})
    other = load_model(parsed(LINEAR, w=values(8, 4, seed=1)))
    with pytest.raises(ModelError, match="weight 'w' differs"):
        reload_check(other, tmp_path / "m.onnx", {})


def test_scalar_outputs_are_compared() -> None:
    text = "(float[N,8] x) => (float y) {{ y = ReduceMean<keepdims = 0>({}) }}"
    found = compare(bytes_of(text.format("x")), bytes_of(text.format("x")), samples())
    assert found.outputs[0].max_abs_error == 0.0
    half = text.replace("{{ y", "{{ z = Mul(x, w) y").format("z")
    found = compare(bytes_of(text.format("x")), bytes_of(half, w=np.float32(0.5)), samples())
    expected = max(abs(float(s.feed["x"].mean())) for s in samples()) / 2
    assert found.outputs[0].max_abs_error == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------------- sessions


def test_a_file_is_opened_once_for_its_comparison_and_its_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    session = ort_session.session

    def counted(model: Path | bytes, **how: Any) -> Any:
        if isinstance(model, Path):
            opened.append(model)
        return session(model, **how)

    monkeypatch.setattr(ort_session, "session", counted)
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    for path, model in zip((one, other), nets(0.1), strict=True):
        path.write_bytes(model)
    kept = OpenModels((one, other), 2)
    found = compare(one, other, samples(6), tensors=["b"], opened=kept)
    rows = bench([one, other], [samples(1)[0].feed], rounds=3, opened=kept)
    assert sorted(opened) == [one, other]
    assert rows[1].rounds == 3
    assert found.sqnr_db == pytest.approx(compare(one, other, samples(6)).sqnr_db, abs=1e-6)


def test_sessions_of_large_files_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.onnx"
    path.write_bytes(nets(0.1)[0])
    assert OpenModels([path], 1).keeps(path)
    monkeypatch.setattr(memory, "held_bytes", lambda: 0)
    assert not OpenModels([path], 1).keeps(path)
    assert not OpenModels([tmp_path / "missing.onnx"], 1).keeps(tmp_path / "missing.onnx")


def test_rows_say_what_is_counted() -> None:
    """Labels of a sigmoid agree by what is above 0.5; the counts are those of all samples."""
    text = """(float[8, 6] x) => (float[8, 6] labels, float[8, 6] scores) {
        h = Mul(x, scale) shifted = Add(h, bias) labels = Sigmoid(shifted) scores = Softmax<axis=-1>(shifted) }"""
    scale, given = np.float32([20]), samples(6, 8, 6)
    biases = [values(6) - 15, values(6) + np.float32(2.0) * values(6, seed=3) - 15]
    one, other = (bytes_of(text, scale=scale, bias=bias) for bias in biases)
    rows = {row.name: row for row in compare(one, other, given).outputs}
    sides = [np.concatenate([20 * s.feed["x"] + bias for s in given]) for bias in biases]
    on = [side > 0 for side in sides]
    match = rows["labels"].match
    assert match is not None
    assert (match.kind, match.same, match.of) == ("labels", (on[0] & on[1]).sum(), (on[0] | on[1]).sum())
    assert match.same < match.of
    assert rows["labels"].agreement == match.share
    assert rows["labels"].cases == match.of
    match = rows["scores"].match
    assert match is not None
    assert (match.kind, match.of) == ("classes", rows["scores"].cases)
    assert rows["scores"].agreement == match.share


def test_an_agreement_on_one_answer_is_noted() -> None:
    model = bytes_of("(float[N,4] x) => (float[N,4] y) { y = Identity(x) }")
    same = [Sample(f"#{i}", {"x": np.float32([[0, i + 2.0, 1, 0]])}) for i in range(3)]
    other = Sample("other", {"x": np.float32([[9.0, 0, 1, 0]])})
    for given, noted in ((same, True), ([*same, other], False), (same[:1], False)):
        found = compare(model, model, given)
        assert found.agreement == 1.0
        assert any("class 1 in all 3 cases" in note for note in found.one_answer) is noted


def test_the_output_that_optimizations_change_is_named() -> None:
    told = optimizer_note(OutputRow("small", optimized_db=18.0, unoptimized_db=25.0))
    assert told.startswith("output 'small': SQNR 18.0 dB with") and "25.0 dB without" in told
    assert not optimizer_note(OutputRow("large", optimized_db=24.5, unoptimized_db=25.0))
