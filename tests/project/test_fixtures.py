import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import FIXTURES, accuracy, facts, fixture, session
from handmade import HANDMADE, write_external

MEGABYTE = 1 << 20


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade_graph_is_valid_and_runs(name: str) -> None:
    case = HANDMADE[name]()
    assert case.feeds
    if case.valid:
        onnx.checker.check_model(case.model, full_check=True)
    if not case.runs:
        with pytest.raises(Exception, match=r"registered|same node name"):
            session(case.model.SerializeToString())
        return
    run = session(case.model.SerializeToString())
    for feed in case.feeds:
        assert run.run(None, feed)


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade_graph_is_the_same_every_time(name: str) -> None:
    first, second = HANDMADE[name](), HANDMADE[name]()
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    for one, other in zip(first.feeds, second.feeds, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_external_data_is_outside_and_runs(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    assert (tmp_path / "external.onnx.data").stat().st_size >= 2 * 16 * 16 * 9 * 4
    case = HANDMADE["resnet_block"]()
    expected = session(case.model.SerializeToString()).run(None, case.feeds[0])[0]
    np.testing.assert_array_equal(session(path).run(None, case.feeds[0])[0], expected)


@pytest.mark.parametrize("name", facts())
def test_trained_model_reaches_its_accuracy(name: str) -> None:
    assert accuracy(name) == pytest.approx(facts()[name]["accuracy"], abs=0.005)


@pytest.mark.parametrize("name", facts())
def test_trained_model_has_no_trace_of_a_machine(name: str) -> None:
    data = fixture(name).read_bytes()
    assert not re.search(rb"site.packages|File \"|/home/|/usr/|/tmp/|\.py\b", data)
    model = onnx.load(fixture(name))
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert all(value.type.tensor_type.shape.dim[0].dim_param == "batch" for value in model.graph.input)


@pytest.mark.parametrize("name", facts())
def test_calibration_data_fits_the_model(name: str) -> None:
    folder = FIXTURES / facts()[name]["calib"]
    files = sorted(folder.iterdir())
    assert len(files) >= 48
    run = session(fixture(name))
    if files[0].suffix == ".npz":
        feeds = [dict(np.load(file)) for file in files]
        assert len({feed["input_ids"].shape for feed in feeds}) > 10  # lengths differ from sample to sample
        for feed in feeds:
            assert np.isfinite(run.run(None, feed)[0]).all()
        return
    assert (FIXTURES / facts()[name]["preset"]).is_file()
    from PIL import Image

    with Image.open(files[0]) as picture:
        assert picture.mode == "L"
        assert list(picture.size) == run.get_inputs()[0].shape[2:]


def test_batchnorm_is_left_in_the_residual_network() -> None:
    operators = [node.op_type for node in onnx.load(fixture("digits_resnet")).graph.node]
    assert operators.count("BatchNormalization") == operators.count("Conv")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits_mobile", {"Conv", "Clip", "Add", "Gemm"}),
        ("licence_encoder", {"MatMul", "LayerNormalization", "Softmax", "Erf", "Gather"}),
        ("licence_lstm", {"LSTM"}),
        ("licence_gru", {"GRU"}),
        ("digits_detector", {"Conv", "Sigmoid", "Mul", "Concat"}),
    ],
)
def test_operators_are_in_the_model(name: str, expected: set[str]) -> None:
    assert expected <= {node.op_type for node in onnx.load(fixture(name)).graph.node}


def test_fixtures_are_small() -> None:
    assert sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file()) < 8 * MEGABYTE
