"""Sound files become a model's inputs: windows, shapes, presets, lengths, masks and states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tones import tone, write_wave

from onnxshot.calibration.preset import Preset, load_preset
from onnxshot.calibration.readers import InputSpec, open_data
from onnxshot.calibration.sound_features import log_mel, standardized
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.errors import CalibrationError, UsageError

FLOAT = np.dtype(np.float32)


def spec(shape: tuple[int | str | None, ...] | None, name: str = "x", dtype: type = np.float32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder of 2.5 s at 16 kHz and 1 s at 8 kHz."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    write_wave(folder / "a.wav", tone(300, 16000, 40000), 16000, 32, 3)
    write_wave(folder / "b.wav", tone(200, 8000, 8000), 8000, 32, 3)
    return folder


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        (("n",), (16000,)), ((None, "n"), (1, 16000)), ((1, 1, "n"), (1, 1, 16000)), ((1, 2, "n"), (1, 2, 16000)),
        ((1, "n", 1), (1, 16000, 1)), (("b", 16000), (1, 16000)),
    ],
)  # fmt: skip
def test_waveforms_take_the_shape_of_the_input(sounds: Path, shape: tuple[Any, ...], made: tuple[int, ...]) -> None:
    with open_data(str(sounds), [spec(shape)], SoundPreset(window=1.0)) as data:
        assert [s.feed["x"].shape for s in data][:2] == [made, made]
        for got in data[1].feed["x"].reshape(-1, 16000):  # each channel
            np.testing.assert_allclose(got, tone(300, 16000, 16000, 16000), atol=1e-6)
        assert data[1].name == "a.wav at 1 s"


def test_free_lengths_keep_a_shorter_rest_and_fixed_ones_fill_it_with_zeros(sounds: Path) -> None:
    with open_data(sounds, [spec((1, "n"))], SoundPreset(window=2.0)) as data:
        assert [s.feed["x"].shape[1] for s in data] == [32000, 8000, 16000]
        assert not any("zeros" in note for note in data.notes)
    with open_data(sounds, [spec((1, 32000))]) as data:
        assert [s.feed["x"].shape[1] for s in data] == [32000] * 3
        assert not data[1].feed["x"][0, 8000:].any() and data[1].feed["x"][0, :8000].any()
        assert "2 windows of sound filled up with zeros" in data.notes
        assert "no preset was given: the waveform at 16000 Hz is assumed" in data.notes
        assert "2 files of sound, 3.5 s: 3 windows of 2 s at 16000 Hz (waveforms)" in data.notes
        assert "sound resampled to 16000 Hz from 8000 Hz" in data.notes
    with open_data(sounds, [spec((1, 39000))]) as data:  # 1000 samples are left of the first file
        assert len(data) == 2 and "1 rest of sound shorter than a tenth of a window left out" in data.notes


def test_loud_files_are_told(sounds: Path) -> None:
    assert not any("far outside" in note for note in open_data(sounds, [spec((1, "n"))]).notes)
    write_wave(sounds / "c.wav", 32767 * tone(200, 16000, 8000), 16000, 32, 3)
    data = open_data(sounds, [spec((1, "n"))])
    (told,) = [note for note in data.notes if "far outside" in note]
    assert told.startswith("1 file of sound holds values far outside of -1..1, such as 1.638e+04 in c.wav")


def test_overlapping_windows_start_a_stride_apart(sounds: Path) -> None:
    with open_data(sounds / "a.wav", [spec((1, "n"))], SoundPreset(window=1.0, stride=0.5)) as data:
        assert len(data) == 4  # the fourth ends with the file
        np.testing.assert_allclose(data[3].feed["x"][0], tone(300, 16000, 16000, 24000), atol=1e-6)


def test_standardized_windows_are_those_of_wav2vec2_and_are_filled_afterwards(sounds: Path) -> None:
    with open_data(sounds, [spec((1, 32000))], SoundPreset(normalize="standard")) as data:
        x = data[1].feed["x"][0]
        np.testing.assert_allclose(x[:8000], standardized(tone(300, 16000, 8000, 32000).astype(np.float32)), atol=1e-5)
        assert not x[8000:].any()


@pytest.mark.parametrize(
    ("shape", "dtype", "bands"),
    [
        ((1, 80, 3000), np.float32, 80), (("b", 128, 3000), np.float16, 128), ((1, 3000, 80), np.float32, 80),
        (("b", 80, "t"), np.float32, 80),
    ],
)  # fmt: skip
def test_whisper_gets_thirty_seconds_of_log_mel(sounds: Path, shape: tuple[Any, ...], dtype: type, bands: int) -> None:
    with open_data(sounds, [spec(shape, "input_features", dtype)], load_preset("whisper")) as data:
        x = data[0].feed["input_features"]
        assert len(data) == 2 and x.dtype == dtype
        wave = np.pad(tone(300, 16000, 40000), (0, 480000 - 40000))
        expected = log_mel(wave, 16000, bands, 400, 160, "whisper")
        np.testing.assert_allclose(
            x[0].T if shape[2] == 80 else x[0], expected, atol=1e-5 if dtype == np.float32 else 2e-3
        )
        assert any("mels: 128, as the model wants, not 80" in n for n in data.notes) == (bands == 128)


def test_a_preset_is_found_in_the_file_beside_the_model(sounds: Path, tmp_path: Path) -> None:
    inside = tmp_path / "model" / "onnx"
    inside.mkdir(parents=True)
    whisper = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 10,
    }
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(whisper))
    with open_data(sounds, [spec((1, "m", "t"), "features")], folder=inside) as data:
        assert data[0].feed["features"].shape == (1, 80, 1000)
        assert any("preprocessor_config.json says" in note for note in data.notes)
    (inside / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 8000}))
    with open_data(sounds, [spec((1, "n"))], folder=inside) as data:
        assert data[0].feed["x"].shape == (1, 20000) and data[0].feed["x"].std() == pytest.approx(1, abs=1e-3)
    for bad in ("[]", "{", '{"sampling_rate": "fast"}', '{"sampling_rate": 1}', '{"n_fft": 400}', "[" * 100000):
        (inside / "preprocessor_config.json").write_text(bad)
        with pytest.raises(CalibrationError, match="preprocessor_config"):
            open_data(sounds, [spec((1, "n"))], folder=inside)


def test_rates_lengths_and_masks_come_with_the_sound(sounds: Path) -> None:
    inputs = [
        spec((1, 32000), "audio"), spec((), "sr", np.int64), spec(("b",), "audio_length", np.int64),
        spec(("b", 32000), "attention_mask", np.int64),
    ]  # fmt: skip
    with open_data(sounds, inputs) as data:
        feed = data[1].feed
        assert feed["sr"] == 16000 and feed["sr"].shape == ()
        assert feed["audio_length"].tolist() == [8000]
        assert feed["attention_mask"].sum() == 8000 and feed["attention_mask"][0, 7999] == 1


def test_states_are_carried_from_window_to_window_of_a_file(sounds: Path) -> None:
    inputs = [spec((1, "n"), "input"), spec((2, None, 3), "state"), spec((), "sr", np.int64)]
    ran: list[int] = []

    def step(feed: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        ran.append(1)
        return {"other": np.zeros((2, 1, 3), np.float32), "stateN": feed["state"] + feed["input"].mean() + 1}

    with open_data(sounds, inputs, SoundPreset(window=0.6, stride=0.5), step=step) as data:
        feeds = [sample.feed for sample in data]
        assert len(feeds) == 5 + 2 and len(ran) == 4 + 1
        assert not feeds[0]["input"][0, :1600].any() and feeds[0]["input"].shape == (1, 9600)
        expected = np.zeros((2, 1, 3), np.float32)
        for feed in feeds[:5]:
            np.testing.assert_allclose(feed["state"], expected, atol=1e-6)
            expected = expected + feed["input"].mean() + 1
        assert not feeds[5]["state"].any()
        np.testing.assert_allclose(feeds[1]["input"][0, :1600], feeds[0]["input"][0, -1600:], atol=1e-6)
        assert any("carried" in note for note in data.notes)
    with open_data(sounds, inputs, SoundPreset(window=0.6)) as data:
        assert any("states (state) are zeros" in note for note in data.notes)
    with pytest.raises(CalibrationError, match=r"'state'.*no output has its shape"):
        list(open_data(sounds, inputs, SoundPreset(window=0.6), step=lambda feed: {"y": np.zeros(1)}))
    with pytest.raises(CalibrationError, match="no fixed length"):
        open_data(sounds, inputs)


def test_paths_may_be_a_file_a_folder_or_a_list(sounds: Path) -> None:
    inputs = [spec((1, "n"))]
    for given, count in (
        (sounds / "a.wav", 1),
        (str(sounds / "b.wav"), 1),
        ([sounds / "b.wav", str(sounds / "a.wav")], 2),
    ):
        with open_data(given, inputs) as data:
            assert len(data) == count
    with pytest.raises(CalibrationError, match="cannot be read"):
        open_data([sounds / "c.wav"], inputs)
    np.save(sounds / "x.npy", np.zeros(3))
    with pytest.raises(CalibrationError, match=r"1 \.npy and 2 sounds"):
        open_data(sounds, inputs)


def test_the_hash_of_data_and_preset_follow_content_and_preset(sounds: Path) -> None:
    inputs = [spec((1, "n"))]

    def hashes(preset: SoundPreset | None = None) -> tuple[str, list[str]]:
        with open_data(sounds, inputs, preset) as data:
            return data.preset_hash, data.digests()

    first = hashes()
    assert first == hashes() and len(set(first[1])) == 2
    assert hashes(SoundPreset(rate=8000))[0] != first[0]
    assert hashes(SoundPreset(normalize="standard"))[0] != first[0]
    write_wave(sounds / "b.wav", tone(201, 8000, 8000), 8000, 32, 3)
    changed = hashes()
    assert changed[0] == first[0] and changed[1][0] == first[1][0] and changed[1][1] != first[1][1]


@pytest.mark.parametrize(
    ("inputs", "preset", "said"),
    [
        ([spec((1, 3, 224, 224))], None, "no input takes them"),
        ([spec((1, "n"), dtype=np.int64)], None, "no input takes them"),
        ([spec((1, 80, 3000))], load_preset("waveform-16k"), "no waveform"),
        ([spec((1, "n"))], load_preset("whisper"), "makes a log-mel spectrogram"),
        ([spec((1, 8000))], SoundPreset(window=1.0), "window: 1; input 'x' expects"),
        ([spec((1, 80, 3000))], SoundPreset(mels=64), "mels: 64; input 'x' expects"),
        ([spec((1, "n")), spec((1, "m"), "decoder_input_ids", np.int64)], None, "also needs 'decoder_input_ids'"),
        ([spec((1, "n"))], Preset(), "is not of sounds"),
        ([spec((1, 1 << 40))], None, "does not fit"),
        ([spec((1, 80, 1 << 40))], load_preset("whisper"), "window is 1.09951e+10 seconds"),
        ([spec((1, 80, 1))], load_preset("whisper"), "too short"),
    ],
)
def test_what_does_not_fit_is_named(sounds: Path, inputs: list[InputSpec], preset: Any, said: str) -> None:
    with pytest.raises(CalibrationError) as error:
        open_data(sounds, inputs, preset)
    assert said in str(error.value) and error.value.hint


def test_presets_are_yaml_files_too(tmp_path: Path, sounds: Path) -> None:
    def loaded(text: str) -> Any:
        (tmp_path / "p.yaml").write_text(text)
        return load_preset(str(tmp_path / "p.yaml"))

    made = loaded("kind: sound\nrate: 8000\nwindow: 2\nnormalize: standard\n")
    assert (made.rate, made.window, made.normalize, made.size_is_default) == (8000, 2.0, "standard", False)
    made = loaded("extends: whisper\nlog: ln\n")
    assert (made.mels, made.log, made.size_is_default) == (80, "ln", True)
    assert not loaded("extends: whisper\nmels: 128\n").size_is_default
    for text, said in {
        "kind: sound\nsize: [1, 2]\n": "unknown key 'size'",
        "kind: sound\nrate: fast\n": "rate is 'fast'",
        "kind: sound\nrate: true\n": "rate is True",
        "kind: sound\nrate: 3\n": "rate is 3",
        "kind: sound\nlog: loud\n": "log is 'loud'",
        "kind: sound\nwindow: -1\n": "window is -1 seconds",
        "kind: sound\nwindow: .nan\n": "window is nan seconds",
        "kind: sound\nwindow: 1e300\n": "window is",
        "kind: sound\nmels: 80\nnormalize: standard\n": "both mels and normalize",
        "kind: sound\nmels: 80\nn_fft: 100000000\n": "n_fft is 100000000",
        "kind: image\nextends: whisper\n": "extends whisper",
        "kind: sound\nextends: imagenet\n": "extends imagenet",
        "kind: sound\nextends: 3\n": "extends is 3",
    }.items():
        with pytest.raises(UsageError) as error:
            loaded(text)
        assert said in str(error.value)
