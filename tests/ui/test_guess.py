"""The guess of a preset, against what the readers of samples then accept."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import fixture
from onnx import TensorProto, helper

from onnxshot.calibration.checks import InputSpec
from onnxshot.calibration.pictures import fit_preset
from onnxshot.calibration.preset import Preset, load_preset, preset_names
from onnxshot.ui.guess import Guess, guess

FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
MODEL = {".onnx": 1}


def graph(*inputs: tuple[str, int, list[object]]) -> bytes:
    """What the page sends of a model: inputs, and an output."""
    made = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    proto = onnx.GraphProto(input=made, output=[helper.make_tensor_value_info("y", FLOAT, None)])
    return proto.SerializeToString()


def of_pictures(*shape: object, kind: int = FLOAT, count: int = 64) -> Guess:
    return guess(graph(("x", kind, list(shape))), MODEL, {".png": count})


@pytest.mark.parametrize(
    ("shape", "preset"),
    [(("N", 3, 224, 224), "imagenet"), ((1, 3, 640, 640), "coco-640"), ((1, 3, 48, "w"), "text-line"),
     (("N", 3, "h", "w"), "imagenet"), ((1, 3, 320, 320), "imagenet")],
)  # fmt: skip
def test_pictures_get_the_preset_that_fits_the_shape_and_hear_why(shape: tuple[object, ...], preset: str) -> None:
    found = of_pictures(*shape)
    assert found.preset == preset
    assert found.why.startswith("64 pictures, and the model takes 3 × ")
    assert preset in found.why
    assert found.problems == ()
    assert set(preset_names("sound")) | {"none"} == found.misfits.keys()
    others = found.why.split(" is usual.")[1]
    assert "imagenet-half" in others, "what fits as well is told"
    assert "text-line" not in others
    assert ("coco-640" in others) is (preset != "coco-640" and shape[2] not in (224, 48))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 224, 224, 3), FLOAT), (("N", "h", "w", 3), FLOAT), ((1, 64, 64, 1), UINT8),
     ((1, 3, 32, 32), UINT8)],
)  # fmt: skip
def test_where_no_preset_fits_a_file_is_proposed_that_does(
    shape: tuple[object, ...], kind: int, tmp_path: Path
) -> None:
    found = of_pictures(*shape, kind=kind)
    assert found.preset == "file"
    assert set(preset_names()) <= found.misfits.keys()
    (tmp_path / "preset.yaml").write_text(found.own)
    preset = load_preset(str(tmp_path / "preset.yaml"))
    assert isinstance(preset, Preset)
    dims = tuple(d if isinstance(d, int | str) else None for d in shape)
    dtype = np.dtype(np.uint8 if kind == UINT8 else np.float32)
    fitted, notes = fit_preset(preset, InputSpec("x", dtype, dims))  # raises where it does not fit
    assert (fitted, notes) == (preset, ())


def test_sounds_are_guessed_from_the_shape_or_the_file_beside_the_model() -> None:
    wave = guess(graph(("audio", FLOAT, ["N", "samples"])), MODEL, {".wav": 9})
    assert (wave.preset, wave.problems) == ("none", ())
    assert "the waveform at 16000 Hz" in wave.why
    assert {"whisper", "imagenet"} <= wave.misfits.keys()
    mel = guess(graph(("input_features", FLOAT, [1, 80, 3000])), MODEL, {".wav": 9})
    assert "log-mel spectrogram of 80 bands" in mel.why
    told = guess(graph(("x", FLOAT, ["N", "samples"])), {**MODEL, "preprocessor_config.json": 1}, {".wav": 9})
    assert "preprocessor_config.json says" in told.why


def test_texts_need_a_tokenizer() -> None:
    ids = graph(("input_ids", INT64, ["N", "length"]), ("attention_mask", INT64, ["N", "length"]))
    lacking = guess(ids, MODEL, {".txt": 1})
    assert any("tokenizer.json" in problem for problem in lacking.problems)
    for beside, samples in (({"tokenizer.json": 1}, {}), ({}, {"tokenizer.json": 1})):
        found = guess(ids, {**MODEL, **beside}, {".txt": 1, **samples})
        assert found.preset == "none"
        assert not any("drop its tokenizer.json" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("model", "beside", "samples", "said"),
    [
        (graph(("input_ids", INT64, ["N", "length"])), MODEL, {".png": 64}, "no input of the model takes pictures"),
        (graph(("x", FLOAT, [1, 3, 8, 8]), ("y", FLOAT, [1])), MODEL, {".png": 64}, "needs more than pictures"),
        (graph(("x", FLOAT, [1, 3, 224, 224])), MODEL, {".txt": 1}, "texts do not fit the model"),
        (graph(("x", FLOAT, [1, 3, 224, 224])), MODEL, {".png": 5}, "only 5 samples"),
        (graph(("x", FLOAT, [1, 3, 224, 224])), MODEL, {".png": 64, ".npz": 2}, "keep one kind"),
        (graph(("x", FLOAT, [1, 4]), ("y", FLOAT, [1])), MODEL, {".npy": 5}, "give .npz files with x, y"),
        (None, {".pt": 1}, {}, "a PyTorch checkpoint, not ONNX: export it"),
        (None, {".png": 7}, {}, "there is no .onnx file among these (7 .png)"),
        (None, {".onnx": 2}, {}, "2 .onnx files"),
        (None, MODEL, {".onnx": 1}, "drop the model above"),
        (None, MODEL, {".docx": 1, "": 1}, "no samples are among these (1 .docx, 1 without a suffix)"),
        (b"\xff\xff", MODEL, {}, "damaged"),
        (onnx.GraphProto(input=[onnx.ValueInfoProto(name="s")]).SerializeToString(), MODEL, {}, "is not a tensor"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_the_run(
    model: bytes | None, beside: Mapping[str, int], samples: Mapping[str, int], said: str
) -> None:
    found = guess(model, beside, samples)
    assert any(said in problem for problem in found.problems), found
    assert found.blocked is (beside.get(".onnx") != 1)


def test_without_a_model_the_kind_of_samples_is_enough_for_a_start() -> None:
    assert guess(None, {}, {".jpg": 64}).preset == "imagenet"
    assert guess(None, {}, {".npz": 64}).preset == "none"
    assert guess(None, {}, {}) == Guess()


def test_a_model_of_the_fixtures_is_read_as_the_runtime_reads_it() -> None:
    whole = onnx.load(fixture("digits_detector"), load_external_data=False).graph
    alone = onnx.GraphProto(input=whole.input, output=whole.output).SerializeToString()
    found = guess(alone, MODEL, {".png": 64})
    import onnxruntime

    given = onnxruntime.InferenceSession(str(fixture("digits_detector"))).get_inputs()
    assert [text.split(":")[0] for text in found.inputs] == [one.name for one in given]


def test_a_grey_model_takes_the_preset_that_treats_channels_alike() -> None:
    found = of_pictures(1, 1, 28, 28, kind=FLOAT)
    assert (found.preset, found.problems) == ("unit", ())
