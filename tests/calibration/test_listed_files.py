"""Files that a caller names: in lists, iterators, tables, patterns; and arrays that are told apart from them."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxshot.calibration import reader_hooks
from onnxshot.calibration.preset import Preset, load_preset
from onnxshot.calibration.reader_hooks import register_reader
from onnxshot.calibration.readers import InputSpec, open_data
from onnxshot.errors import CalibrationError

F32 = np.dtype("float32")
VECTOR = (InputSpec("x", F32, ("N", 4)),)


def rows(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def refused(source, inputs, preset=None):
    with pytest.raises(CalibrationError) as caught:
        list(open_data(source, inputs, preset))
    return str(caught.value)


def grey_pictures(folder, count=3):
    paths = []
    folder.mkdir(exist_ok=True)
    for i in range(count):
        paths.append(folder / f"{i}.png")
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) + i).save(paths[-1])
    return paths


GREY = Preset(name="grey", channels="GRAY")
RGB_INPUT = (InputSpec("input", F32, ("N", 3, 32, 32)),)
GREY_INPUT = (InputSpec("image", F32, ("N", 1, 8, 8)),)


@pytest.mark.parametrize("kind", [str, Path, Image.open])
def test_a_list_of_pictures_is_read_as_their_folder_is(kind, tmp_path):
    paths = grey_pictures(tmp_path)
    listed = [sample.feed["image"] for sample in open_data([kind(path) for path in paths], GREY_INPUT, GREY)]
    for one, path in zip(listed, paths, strict=True):
        np.testing.assert_allclose(one, np.asarray(Image.open(path), np.float32)[None, None] / 255)
    assert "preset=" in refused([kind(path) for path in paths], GREY_INPUT)


def test_pictures_of_pil_are_pixels_whatever_their_mode():
    seen = Image.new("RGBA", (32, 32), (255, 0, 0, 128))
    (sample,) = open_data([seen.convert("P")], RGB_INPUT, Preset(name="unit"))
    assert sample.feed["input"].shape == (1, 3, 32, 32)
    assert sample.feed["input"][0, 0].min() > 0.9


def test_a_list_of_arrays_in_files_is_read_as_their_folder_is(tmp_path):
    paths = []
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((1, 4), i, np.float32))
        paths.append(tmp_path / f"{i}.npy")
    assert [float(sample.feed["x"][0, 0]) for sample in open_data(paths[::-1], VECTOR)] == [2, 1, 0]


def test_listed_files_are_there_and_of_one_kind(tmp_path):
    (picture, *_) = grey_pictures(tmp_path, 1)
    (tmp_path / "x.npy").write_bytes(b"")
    assert "two kinds" in refused([picture, tmp_path / "x.npy"], GREY_INPUT, GREY)
    assert "gone.png" in refused([picture, tmp_path / "gone.png"], GREY_INPUT, GREY)
    assert "no file of samples" in refused([Path(__file__)], GREY_INPUT, GREY)
    assert "gone/a.png cannot be read" in refused(["gone/a.png", "gone/b.png"], GREY_INPUT, GREY)
    assert "texts" in refused(["no file is called a.png", "b.png"], GREY_INPUT), "these are texts"


@pytest.fixture
def in_folders(tmp_path: Path) -> list[Path]:
    """Pictures in a folder per class."""
    return [path for name in ("a", "b") for path in grey_pictures(tmp_path / name)]


def columns_of(values: dict[str, list[Any]]) -> Any:
    """What a table of pandas has, as far as it is used here."""

    class Table:
        def __init__(self) -> None:
            self.columns = list(values)

        def __getitem__(self, name: str) -> Any:
            return types.SimpleNamespace(to_numpy=lambda: np.array(values[name], object))

        def to_numpy(self) -> Any:
            return np.array([values[name] for name in values], object).T

        def head(self, count: int) -> Any:
            return columns_of({name: found[:count] for name, found in values.items()})

    return Table()


NAMED = {
    "an iterator of paths": lambda paths: (path for path in paths),
    "an iterator of texts": lambda paths: map(str, paths),
    "pairs of a path and a label": lambda paths: [(path, 1) for path in paths],
    "pairs of a text and a word": lambda paths: [(str(path), "cat") for path in paths],
    "rows with a label": lambda paths: [{"file": str(path), "label": 3} for path in paths],
    "a dict of one column": lambda paths: {"image": [str(path) for path in paths]},
    "an array of texts": lambda paths: np.array([str(path) for path in paths]),
    "an array of paths": lambda paths: np.array(paths),
    "a column": lambda paths: types.SimpleNamespace(dtype=object, to_numpy=lambda: np.array(paths)),
    "a table": lambda paths: columns_of({"file": [str(path) for path in paths], "label": [0] * len(paths)}),
    "paths beside labels": lambda paths: (list(paths), [0] * len(paths)),
    "an array of paths beside labels": lambda paths: (np.array([str(path) for path in paths]), np.zeros(len(paths))),
    "a pattern": lambda paths: str(paths[0].parent.parent / "*" / "*.png"),
    "a pattern for all folders": lambda paths: str(paths[0].parent.parent / "**" / "*.png"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_files_are_named_in_many_ways(kind, in_folders):
    wanted = [sample.feed["image"] for sample in open_data(in_folders, GREY_INPUT, GREY)]
    found = [sample.feed["image"] for sample in open_data(NAMED[kind](in_folders), GREY_INPUT, GREY)]
    np.testing.assert_array_equal(found, wanted)


def test_a_pattern_that_matches_nothing_is_said(tmp_path):
    assert "no file matches" in refused(str(tmp_path / "*.png"), GREY_INPUT, GREY)
    assert "cannot be matched" in refused(str(tmp_path / "a**b" / "*.png"), GREY_INPUT, GREY)


def test_texts_beside_words_stay_texts(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert "holds texts" in refused([("a b.png", "cat")], GREY_INPUT)
    assert "holds texts" in refused(iter(["a sentence", "another"]), GREY_INPUT)


def test_pixels_of_16_bits_take_the_preset():
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    for given in (deep, Image.fromarray(deep)):
        (sample,) = open_data([given], GREY_INPUT, GREY)
        np.testing.assert_allclose(sample.feed["image"][0, 0], np.rint(deep / 257) / 255, rtol=1e-6)


def test_arrays_of_all_samples_may_be_followed_by_their_labels():
    given, labels = rows(6, 4), np.arange(6)
    data = open_data((given, labels), VECTOR)
    np.testing.assert_array_equal(np.concatenate([sample.feed["x"] for sample in data]), given)
    assert data.notes == ("the first array is the input 'x'; what follows is dropped: not an input of the model",)
    assert len(open_data((given, given), VECTOR)) == 6, "such as what the model is to make of it"
    assert len(open_data((given,) * 4, VECTOR)) == 24, "a tuple of batches"
    assert len(open_data((given[:1], given[1:2]), VECTOR)) == 2, "a tuple of samples"


def test_another_name_for_the_only_input_is_said():
    assert open_data({"imgae": rows(6, 4)}, VECTOR).notes == ("'imgae' of dict is taken as input 'x'",)
    assert open_data({"x": rows(6, 4)}, VECTOR).notes == ()


def test_samples_that_are_batches_are_said():
    assert open_data(rows(6, 3, 4), VECTOR).notes == ("each of the 6 samples of ndarray is a batch of 3",)


def test_a_column_of_pictures_is_a_list_of_them(in_folders):
    pictures = np.empty(len(in_folders), object)
    pictures[:] = [Image.open(path) for path in in_folders]
    column = types.SimpleNamespace(dtype=np.dtype(object), to_numpy=lambda: pictures)
    wanted = [sample.feed["image"] for sample in open_data(in_folders, GREY_INPUT, GREY)]
    np.testing.assert_array_equal([sample.feed["image"] for sample in open_data(column, GREY_INPUT, GREY)], wanted)


def test_whole_numbers_of_a_picture_are_pixels():
    for top, bits in ((255, 255), (65535, 65535)):
        seen = np.linspace(0, top, 64).astype(np.int32).reshape(8, 8)
        (sample,) = open_data([Image.fromarray(seen, "I")], GREY_INPUT, GREY)
        np.testing.assert_allclose(sample.feed["image"][0, 0], seen / bits, atol=0.5 / 255 + 1e-6)


def test_what_names_no_samples_is_told(tmp_path):
    (tmp_path / "a").mkdir()
    assert "a is a folder (give one folder, a pattern" in refused([tmp_path / "a"], GREY_INPUT, GREY)
    assert "a is a folder (give one folder, a pattern" in refused([str(tmp_path / "a")], GREY_INPUT, GREY)
    closed = Image.new("L", (8, 8))
    closed.close()
    assert "list #0" in refused([closed], GREY_INPUT, GREY)
    assert "rename the one that is meant to 'x'" in refused({"pix": rows(6, 4), "label": np.arange(6)}, VECTOR)


def test_a_grey_model_takes_the_preset_that_treats_channels_alike(in_folders):
    unit = load_preset("unit")
    data = open_data(in_folders, GREY_INPUT, unit)
    wanted = [sample.feed["image"] for sample in open_data(in_folders, GREY_INPUT, GREY)]
    np.testing.assert_array_equal([sample.feed["image"] for sample in data], wanted)
    assert "preset unit: grey, as input 'image' takes 1 channel" in data.notes
    assert 'preset="unit"' in refused([np.zeros((8, 8), np.uint8)], GREY_INPUT)
    assert 'preset="unit"' in refused(in_folders, GREY_INPUT, load_preset("imagenet"))


def test_inputs_of_one_batch_hold_as_many_samples():
    two = (InputSpec("a", F32, ("N", 4)), InputSpec("b", F32, ("N", 2)))
    assert "'a' holds 6 samples, and 'b' holds 5" in refused({"a": rows(6, 4), "b": rows(5, 2)}, two)
    assert "'a' holds 6 samples, and 'b' holds 5" in refused((rows(6, 4), rows(5, 2)), two)
    assert len(open_data({"a": rows(6, 4), "b": rows(6, 2)}, two)) == 6
    assert len(open_data({"a": rows(6, 4), "b": rows(1, 2)}, two)) == 6, "one row is part of every sample"


def test_texts_in_an_array_are_texts():
    assert "holds texts" in refused(np.array(["a text", "another"]), GREY_INPUT)
    strings = (InputSpec("s", np.dtype(object), ("N",)),)
    assert len(open_data(np.array(["a", "b", "c"]), strings)) == 3


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 4)])
def test_an_array_without_rows_holds_no_samples(shape):
    assert "ndarray holds no samples" in refused(rows(*shape), VECTOR)


def test_files_of_a_registered_kind_are_read_in_lists_and_patterns(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_hooks, "_READERS", {})
    register_reader(".row", lambda path: np.full((1, 4), int(path.stem), np.float32))
    paths = [tmp_path / f"{i}.row" for i in range(3)]
    for path in paths:
        path.touch()
    for named in (paths, [str(path) for path in paths], sorted(tmp_path.glob("*.row")), str(tmp_path / "*.row")):
        assert [float(sample.feed["x"][0, 0]) for sample in open_data(named, VECTOR)] == [0, 1, 2]
