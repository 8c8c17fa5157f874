"""Dimensions that are frozen: everywhere they stand, with nothing left to contradict them, and the file still runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_runs import command, fixture
from handmade import HANDMADE
from handmade.core import feeds, model, samples, weight
from planned_models import FAST, PROVEN, run

import onnxshot
from onnxshot import quantize
from onnxshot.calibration.batches import MOST_COPIES, batched
from onnxshot.calibration.readers import open_data
from onnxshot.errors import CalibrationError, ModelError, UsageError
from onnxshot.graph.fixed_shapes import FixedShapes, resolve_fixed_shapes
from onnxshot.graph.load import load_model
from onnxshot.passes.fix_shapes import FixShapes
from onnxshot.recipes.files import load_recipe
from onnxshot.recipes.stages import PruneStage, Stages
from onnxshot.rewriting.model_inputs import fixed_shapes_for, input_specs
from onnxshot.verification.io_contract import contract


def frozen_model(proto: onnx.ModelProto, batch: int | None = None, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    found = load_model(proto)
    FixShapes(fixed_shapes_for(found, batch, shapes)).run(found)
    made = found.to_proto()
    onnx.checker.check_model(made, full_check=True)
    return made


def dims(proto: onnx.ModelProto) -> dict[str, Any]:
    return {port.name: port.dims for port in contract(proto)}


@pytest.mark.parametrize(
    ("inputs", "batch", "shapes", "wanted"),
    [
        ({"x": ("N", 3, "H", "W")}, 4, {}, {"x": (4, 3, "H", "W")}),
        ({"x": (None, 3), "n": (None, 2)}, 4, {}, {"x": (4, 3), "n": (4, 2)}),
        ({"x": ("N", "T"), "mask": ("N", "T"), "table": ("K", 4)}, 2, {}, {"x": (2, "T"), "mask": (2, "T")}),
        ({"x": ("N", "T"), "mask": ("N", "T")}, None, {"x": (1, 8)}, {"x": (1, 8), "mask": (1, 8)}),
        ({"x": None}, None, {"x": (1, 8)}, {"x": (1, 8)}),
        ({"t": (), "x": ("N", 3)}, 4, {}, {"x": (4, 3)}),
        ({"fixed": (7, 3), "x": ("N", 3)}, 4, {}, {"x": (4, 3)}),
        ({"x": (4, 3)}, 4, {}, {}),
        ({"x": ("N", 3)}, 4, {"x": (4, 3)}, {"x": (4, 3)}),
        ({"x": ("N", 3)}, None, {}, {}),
    ],
)
def test_what_is_fixed(inputs: Any, batch: int | None, shapes: Any, wanted: Any) -> None:
    assert resolve_fixed_shapes(inputs, batch, shapes).inputs == wanted


@pytest.mark.parametrize(
    ("inputs", "batch", "shapes", "words"),
    [
        ({"x": (1, 3)}, 4, {}, "batch cannot be 4: 'x' has 1"),
        ({"x": ("N", 3)}, None, {"x": (1, 4)}, "dimension 1 of input 'x' is 3, it cannot be 4"),
        ({"x": ("N", 3)}, None, {"x": (1, 3, 1)}, "has 2 dimensions, 3 sizes are given"),
        ({"x": ("N", 3)}, None, {"y": (1, 3)}, "no input 'y'.*inputs: x"),
        ({"x": ("N",), "y": ("N",)}, None, {"x": (1,), "y": (2,)}, "'N' is 1 in input 'x' and 2 in input 'y'"),
        ({"x": ("N", 3)}, 4, {"x": (2, 3)}, "is 2.*cannot be 4"),
        ({"x": (None, 3)}, 4, {"x": (2, 3)}, "is 2.*cannot be 4"),
        ({"x": ("N", "N")}, None, {"x": (2, 3)}, "'N' is 2 in input 'x' and 3 in input 'x'"),
        ({"t": ()}, 4, {}, "no input has one"),
    ],
)
def test_contradictions_are_told(inputs: Any, batch: int | None, shapes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve_fixed_shapes(inputs, batch, shapes)


def test_a_symbol_has_one_size_everywhere_and_stale_shapes_go() -> None:
    proto = model(
        """g (float[N, 4] x, float[N, 4] z) => (float[N, 8] y, float[N, M] u)
        <float[1, 4] a, float[1, 8] stale> {
        a = Add(x, z)
        stale = MatMul(a, w)
        y = Relu(stale)
        u = Concat<axis = 1>(a, x)
    }""",
        {"w": weight(4, 8)},
    )
    before = proto.SerializeToString()
    made = frozen_model(proto, 5)
    assert proto.SerializeToString() == before, "the model that was given stays"
    assert dims(made) == {"x": (5, 4), "z": (5, 4), "y": (5, 8), "u": (5, "M")}
    inner = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.value_info}
    assert inner == {"a": [5, 4], "stale": [5, 8]}
    (feed,) = feeds(1, x=(5, 4), z=(5, 4))
    for wanted, got in zip(run(proto, feed), run(made, feed), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_what_follows_from_frozen_sizes_is_folded() -> None:
    text = """g (float[N, C] x) => (float[M] y) {
        s = Shape(x)
        p = ReduceProd<keepdims = 1>(s)
        y = Reshape(x, p)
    }"""
    made = frozen_model(model(text), x=(2, 6))
    assert [node.op_type for node in made.graph.node] == ["Reshape"]
    (feed,) = feeds(1, x=(2, 6))
    assert run(made, feed)[0].shape == (12,)


def test_branches_follow() -> None:
    case = HANDMADE["if_captures_weights"]()
    made = frozen_model(case.model, 4)
    (node,) = (node for node in made.graph.node if node.op_type == "If")
    for branch in node.attribute:
        assert [d.dim_value for d in branch.g.output[0].type.tensor_type.shape.dim] == [4, 16]
    for wanted, got in zip(run(case.model, case.feeds[0]), run(made, case.feeds[0]), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_nothing_is_frozen_unasked() -> None:
    found = load_model(HANDMADE["resnet_block"]().model)
    before = found.to_proto()
    assert FixShapes(FixedShapes()).run(found).edits == 0
    assert found.to_proto() == before


# ---------------------------------------------------------------------- samples


def test_samples_make_batches() -> None:
    given = [{"x": np.full((1, 2), i, np.float32), "t": np.float32(i)} for i in range(5)]
    found = load_model(model("g (float[N, 2] x, float t) => (float[N, 2] y) { y = Mul(x, t) }"))
    data = open_data(given, input_specs(found))
    made = batched(data, {"x": (2, 2)})
    assert [list(sample.feed["x"][:, 0]) for sample in made] == [[0, 1], [2, 3], [4, 0]]
    assert [float(sample.feed["t"]) for sample in made] == [0, 2, 4]
    assert len(batched(data, {"x": (1, 2)})) == 5
    with pytest.raises(CalibrationError, match=r"'x' is frozen to \[2,3\]; sample '#0' holds \[1,2\]"):
        batched(data, {"x": (2, 3)})
    pairs = open_data(samples([{"x": np.zeros((2, 2), np.float32), "t": np.float32(1)}] * 3), input_specs(found))
    assert batched(pairs, {"x": (4, 2)})[0].feed["x"].shape == (4, 2)
    with pytest.raises(CalibrationError, match=r"frozen to \[3,2\]"):
        batched(pairs, {"x": (3, 2)})


def test_samples_of_different_lengths_make_no_batch() -> None:
    found = load_model(model("g (float[N, T] x) => (float[N, T] y) { y = Relu(x) }"))
    data = open_data([{"x": np.zeros((1, n), np.float32)} for n in (2, 3)], input_specs(found))
    with pytest.raises(CalibrationError, match="frozen to"):
        batched(data, {"x": (2, "T")})


# ---------------------------------------------------------------------- whole runs


def test_a_frozen_model_is_quantized_proven_and_made_again(tmp_path: Path) -> None:
    proto = onnx.load(str(fixture("digits_resnet")))
    size = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    given = feeds(16, image=(1, *size))
    options: dict[str, Any] = {"effort": "fast", "settings": PROVEN}
    result = quantize(proto, given, output=tmp_path / "b4.onnx", batch=4, **options)
    ports = contract(tmp_path / "b4.onnx")
    assert [port.dims[0] for port in ports if port.dims] == [4, 4]
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 20
    assert result.report.samples["held_out"] == 4, "four samples: one batch"
    assert result.report.contract == "", "what was asked for is no difference"
    plain = quantize(proto, given, output=tmp_path / "any.onnx", **options)
    feed = {"image": np.concatenate([f["image"] for f in given[:4]])}
    for wanted, got in zip(
        run(onnx.load(str(tmp_path / "any.onnx")), feed), run(onnx.load(str(tmp_path / "b4.onnx")), feed), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)
    assert contract(plain.model) == contract(proto)
    result.report.save(tmp_path / "r.json")
    recipe = load_recipe(tmp_path / "r.json")
    assert recipe.batch == 4
    quantize(proto, given, output=tmp_path / "again.onnx", recipe=recipe, settings=PROVEN)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "b4.onnx").read_bytes()


def test_the_command_line_freezes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fixture("digits_resnet")
    assert command("emit", source, "--batch", "3", "-o", tmp_path / "b3.onnx") == 0
    assert {port.dims[0] for port in contract(tmp_path / "b3.onnx") if port.dims} == {3}
    assert command("emit", source, "--shape", "image=0x1", "-o", tmp_path / "no.onnx") == 2
    assert command("emit", source, "--shape", "picture=1x1", "-o", tmp_path / "no.onnx") == 2
    twice = ("--shape", "image=1x1x28x28", "--shape", "image=2x1x28x28")
    assert command("emit", source, *twice, "-o", tmp_path / "no.onnx") == 2
    assert "given twice for input 'image'" in " ".join(capsys.readouterr().err.split())
    assert command("quantize", source, "--batch", "2", "--mode", "weights", "-o", tmp_path / "b2.onnx") == 0
    assert {port.dims[0] for port in contract(tmp_path / "b2.onnx") if port.dims} == {2}
    assert not (tmp_path / "no.onnx").exists()


def test_a_sample_of_another_size_is_told() -> None:
    text = "g (float[N, 4, H, W] x) => (float[N, 4, H, W] y) { y = Conv(x, w) }"
    proto = model(text, {"w": weight(4, 4, 1, 1)})
    with pytest.raises(CalibrationError, match=r"input 'x' expects float32 \[N,4,8,8\].*holds float32 \[1,4,6,6\]"):
        quantize(proto, feeds(4, x=(1, 4, 6, 6)), shapes={"x": [1, 4, 8, 8]}, settings=FAST)
    made = quantize(proto, feeds(4, x=(1, 4, 8, 8)), shapes={"x": [2, 4, 8, 8]}, settings=FAST)
    assert dims(made.model.to_proto())["x"] == (2, 4, 8, 8)


@pytest.mark.parametrize(("shape", "words"), [("1, 8", "Reshape node"), ("1, -1", r"gives \[1, 32\]")])
@pytest.mark.parametrize("verify", [True, False])
def test_a_batch_that_is_baked_in_is_refused_by_name(shape: str, words: str, verify: bool, tmp_path: Path) -> None:
    text = """g (float[N, 2, 4] x) => (float[N, K] y) {
        shape = Constant<value = int64[2] {SHAPE}>()
        [baked] y = Reshape(x, shape)
    }""".replace("SHAPE", shape)
    proto = model(text)
    settings = onnxshot.Settings(verify=verify)
    with pytest.raises(ModelError, match=f"dimensions frozen.*{words}.*baked.*a size is baked in"):
        onnxshot.emit(proto, output=tmp_path / "out.onnx", batch=4, settings=settings)
    assert not list(tmp_path.iterdir())
    onnxshot.emit(proto, output=tmp_path / "out.onnx", batch=1, settings=settings)
    with pytest.raises(ModelError, match="a size is baked in"):
        quantize(proto, mode="weights", batch=4, settings=settings)


def test_an_artifact_is_not_red_for_the_sizes_that_were_asked_for(tmp_path: Path) -> None:
    report = onnxshot.emit(
        free(), output=tmp_path / "b2.onnx", batch=2, calib=feeds(4, x=(1, 32)), target="tensorrt", settings=PROVEN
    )  # fmt: skip
    assert report.sqnr_db is not None
    assert report.contract == ""
    onnx.save(free(), tmp_path / "free.onnx")
    found = onnxshot.compare(tmp_path / "free.onnx", tmp_path / "b2.onnx", feeds(4, x=(2, 32)), settings=PROVEN)
    assert "[N, 32] against" in found.contract, "compare knows of no sizes asked for"


def free() -> onnx.ModelProto:
    """Two products of a free batch."""
    text = "g (float[N, 32] x) => (float[N, 16] y) { h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }"
    return model(text, {"v": weight(32, 64), "w": weight(64, 16, seed=1)})


def test_a_goal_is_searched_for_at_the_sizes_that_are_fixed(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def score(run: Any) -> float:
        seen.append(run({"x": np.ones((2, 32), np.float32)})["y"].shape)
        return 0.0

    goal = onnxshot.Goal(min_sqnr=20, max_drop=1, evaluate=score)
    result = onnxshot.tune(
        free(), feeds(16, x=(1, 32)), goal, output=tmp_path / "b2.onnx", batch=2, effort="fast", include=("MatMul",),
        settings=FAST,
    )  # fmt: skip
    assert result.report.goal["reached"]
    assert result.report.recipe["batch"] == 2
    assert set(seen) == {(2, 16)}
    made = onnx.load(tmp_path / "b2.onnx")
    assert [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim] == [2, 32]


def test_the_last_of_several_stages_may_freeze(tmp_path: Path) -> None:
    found = onnxshot.compress(
        free(), feeds(16, x=(1, 32)), sparsity=0.5, batch=2, effort="fast", output=tmp_path / "b2.onnx",
        settings=FAST, keep_stages=tmp_path,
    )  # fmt: skip
    sizes = {
        name: [d.dim_value or d.dim_param for d in onnx.load(tmp_path / name).graph.input[0].type.tensor_type.shape.dim]
        for name in ("pruned.onnx", "b2.onnx")
    }
    assert sizes == {"pruned.onnx": ["N", 32], "b2.onnx": [2, 32]}
    assert found.report.samples["held_out"] == 2, "four samples: two batches"
    assert found.report.sqnr_db is not None
    assert found.report.sqnr_db > 5
    assert found.report.contract == "", "what was asked for is no difference"


def test_a_stage_that_is_not_the_last_may_not() -> None:
    stages = Stages((onnxshot.Recipe(batch=2), PruneStage(sparsity=0.5)))
    with pytest.raises(UsageError, match=r"stage 1 \(quantize\) freezes sizes .let the last stage"):
        onnxshot.compress(free(), feeds(4, x=(1, 32)), recipe=stages)


@pytest.mark.parametrize("values", [{"batch": 0}, {"batch": True}, {"shapes": {"x": "1x3"}}, {"shapes": [1]}])
def test_sizes_that_are_none_are_told(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"batch is|shapes(.x)? is"):
        onnxshot.Recipe.from_dict(values)


class _Counted(Sequence[dict[str, Any]]):
    """Samples that count how often they are read."""

    def __init__(self, n: int) -> None:
        self.given = [{"x": np.full((1, 2), i, np.float32)} for i in range(n)]
        self.read = 0

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: Any) -> Any:
        self.read += 1
        return self.given[index]


def test_a_batch_reads_each_sample_once_and_repeats_it() -> None:
    found = load_model(model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }"))
    samples = _Counted(3)
    made = batched(open_data(samples, input_specs(found)), {"x": (1000, 2)})
    samples.read = 0
    feed = made[0].feed["x"]
    assert samples.read == 3
    assert np.array_equal(feed[:, 0], np.arange(1000) % 3)


def test_a_batch_of_too_many_copies_is_refused_at_once(tmp_path: Path) -> None:
    proto = model("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", {"w": weight(64, 64)})
    samples = _Counted(4)
    samples.given = [{"x": np.ones((1, 64), np.float32)} for _ in range(4)]
    with pytest.raises(UsageError, match="a batch of 100000 samples takes 100000 copies of each of 1"):
        quantize(proto, samples, batch=100000, settings=FAST)
    assert samples.read < 5  # nothing was calibrated
    data = open_data(samples, input_specs(load_model(proto)))
    with pytest.raises(UsageError, match="25000 copies of each of 4"):
        batched(data, {"x": (100000, 64)})
    assert len(batched(data, {"x": (4 * MOST_COPIES, 64)})) == 1


def test_tensors_that_are_vast_only_together_are_refused() -> None:
    steps = "".join(f" t{i + 1} = Relu(t{i}) " for i in range(20))
    proto = model(f"g (float[N, 1000] t0) => (float[N, 1000] t20) {{ {steps} }}")
    assert fixed_shapes_for(load_model(proto), 300_000, {})
    with pytest.raises(UsageError, match="the model's 21 tensors take 42 GB together"):
        fixed_shapes_for(load_model(proto), 500_000, {})
