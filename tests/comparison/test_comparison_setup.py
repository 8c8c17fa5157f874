"""How models are made comparable: edits in memory, other runtimes, and goals."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from compared_models import cache, head, noisy_net, samples
from handmade.core import model, weight
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

import onnxshot
from onnxshot.calibration.readers import open_data
from onnxshot.comparison.comparison_setup import comparison_setup
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.search.goal import Goal, Judge
from onnxshot.verification.compare_models import compare_loaded

PROVEN = onnxshot.Settings(threads=2, bench_seconds=0.01)
Feed = dict[str, NDArray[Any]]


def test_a_plain_model_is_run_as_it_is() -> None:
    made = model("g (float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w) }", {"w": weight(4, 4)}).SerializeToString()
    how = comparison_setup(made, samples(1, 3, 4)[0].feed)
    assert how.plain and how.reference is made and how.prepared(made) is made and how.notes == ()


def test_compared_models_are_not_changed() -> None:
    for made in (noisy_net(), head(), cache("Concat <axis = 2> (moved, new)")):
        before = made.SerializeToString()
        dims = made.graph.input[0].type.tensor_type.shape.dim
        feed: Feed = {"x": np.zeros([d.dim_value or 3 for d in dims], np.float32)}
        feed["past"] = np.ones((1, 2, 3, 4), np.float32)
        comparison_setup(before, feed).prepared(before)
        assert made.SerializeToString() == before
        assert all(not i.name.startswith("onnxshot.judged") for i in made.graph.initializer)
        assert numpy_helper.to_array(made.graph.initializer[0]).dtype == np.float32
        assert made.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_outputs_that_cannot_be_made_comparable_are_left_out_in_other_runtimes() -> None:
    """An artifact cannot be edited: it draws other numbers, and picks by itself."""
    past = {"x": (1, 4), "past": (1, 2, 5, 4)}
    cases = (
        (noisy_net(), {"x": (1, 8, 40)}, []),
        (head(), {"x": (1, 3, 24, 24)}, []),
        (cache("Concat <axis = 2> (moved, new)"), past, ["y"]),
    )
    for made, shapes, left in cases:
        source, rng = made.SerializeToString(), np.random.default_rng(0)
        given = [{k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()} for _ in range(3)]
        with open_data(given, Runner(source).inputs) as data:
            found = compare_loaded(source, Runner(source), data)
        assert [row.name for row in found.outputs] == left
        assert (found.sqnr_db is None) == (not left)
        assert found.notes[0].startswith("not compared in this runtime: ")


def test_goals_are_measured_with_fixed_random_numbers(tmp_path: Path) -> None:
    onnx.save(noisy_net(), str(tmp_path / "net.onnx"))
    given = [s.feed for s in samples(3, 1, 8, 40)]
    with open_data(given, Runner(tmp_path / "net.onnx").inputs) as data:
        judge = Judge(Goal(min_sqnr=20), tmp_path / "net.onnx", data, PROVEN)
        assert judge.measure(tmp_path / "net.onnx", ()).sqnr_db == 200.0
