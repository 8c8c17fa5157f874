"""Calibration data: every kind of source, what is made to fit and what is refused, in one line."""

from __future__ import annotations

import dataclasses
import gc
import io
import re
import struct
import sys
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxshot.calibration.data_summary import PIXELS, describe_inputs
from onnxshot.calibration.preprocess import image
from onnxshot.calibration.preset import Preset, load_preset
from onnxshot.calibration.readers import Dataset, InputSpec, Sample, open_data, split
from onnxshot.errors import CalibrationError

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
VECTOR = (InputSpec("x", F32, ("N", 4)),)
PHOTO = (InputSpec("images", F32, (None, 3, 640, 640)),)
SMALL = (InputSpec("input", F32, ("N", 3, 32, 32)),)
TEXT = (InputSpec("ids", I64, ("N", "T")), InputSpec("mask", I64, ("N", "T")))
UNIT = load_preset("unit")
IMAGENET = load_preset("imagenet")


def rows(n, *shape, dtype=np.float32):
    return np.arange(n * int(np.prod(shape)), dtype=dtype).reshape(n, *shape)


def save_pictures(folder, names=("a.png", "b.jpg", "sub/c.bmp"), size=(32, 32), value=None):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size[::-1], (i * 10 if value is None else value, 20, 30)).save(path)
    return folder


def refused(source, specs=VECTOR, preset=None, **options):
    """The message of the CalibrationError, which is one line with a way out."""
    with pytest.raises(CalibrationError) as caught:
        list(open_data(source, specs, preset, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def feeds(n=3):
    return [{"x": np.full((1, 4), i, np.float32)} for i in range(n)]


def firsts(data, name="x"):
    return [float(s.feed[name].ravel()[0]) for s in data]


# --- pictures


def test_a_folder_of_pictures_is_walked_and_sorted(tmp_path):
    folder = save_pictures(tmp_path, ("b.png", "a.JPG", "cats/1.webp", "z.gif", ".hidden/x.png", "._z.png"))
    (folder / "notes.txt").write_text("not data")
    data = open_data(folder, SMALL, IMAGENET)
    assert [s.name for s in data] == ["a.JPG", "b.png", "cats/1.webp", "z.gif"]
    assert data[0].feed["input"].shape == (1, 3, 32, 32)
    assert not data.random


def test_pictures_go_through_the_preset(tmp_path):
    folder = save_pictures(tmp_path)
    preset = Preset(size=(32, 32), channels="BGR", mean=(0.1, 0.2, 0.3))
    data = open_data(str(folder), SMALL, preset)
    np.testing.assert_array_equal(data[0].feed["input"], image(folder / "a.png", preset))


def test_one_picture(tmp_path):
    save_pictures(tmp_path)
    assert len(open_data(tmp_path / "a.png", SMALL, UNIT)) == 1


def test_pictures_without_a_preset_list_the_presets(tmp_path):
    message = refused(save_pictures(tmp_path), PHOTO)
    assert "no preset" in message
    assert 'try preset="coco-640"; presets: coco-640, imagenet,' in message


def test_pictures_feed_one_input_only(tmp_path):
    specs = (*SMALL, InputSpec("size", F32, ("N", 2)))
    message = refused(save_pictures(tmp_path), specs, UNIT)
    assert "also needs 'size' float32 [N,2]" in message
    assert ".npz" in message
    assert "no input takes them" in refused(tmp_path, VECTOR, UNIT)


def test_the_size_of_a_shipped_preset_gives_way_to_the_models(tmp_path):
    data = open_data(save_pictures(tmp_path, size=(50, 70)), SMALL, IMAGENET)
    assert data[0].feed["input"].shape == (1, 3, 32, 32)
    assert any("size: [32, 32], as the model wants, not size: [224, 224]" in note for note in data.notes)


def test_unit_takes_the_fixed_size_of_the_model_or_the_pictures_own(tmp_path):
    save_pictures(tmp_path, size=(50, 70))
    assert open_data(tmp_path, SMALL, UNIT)[0].feed["input"].shape == (1, 3, 32, 32)
    free = (InputSpec("input", F32, ("N", 3, "H", "W")),)
    data = open_data(tmp_path, free, UNIT)
    assert data[0].feed["input"].shape == (1, 3, 50, 70)
    assert data.notes == ()


def test_text_line_takes_the_fixed_width_of_the_model(tmp_path):
    save_pictures(tmp_path, size=(24, 100))
    fixed = (InputSpec("x", F32, ("N", 3, 32, 280)),)
    assert open_data(tmp_path, fixed, load_preset("text-line"))[0].feed["x"].shape == (1, 3, 32, 280)


def test_a_size_the_user_chose_is_not_overridden(tmp_path):
    message = refused(save_pictures(tmp_path), SMALL, Preset(name="my.yaml", size=(224, 224)))
    for part in ("my.yaml makes pictures size: [224, 224]", "float32 [N,3,32,32]", "set size: [32, 32] in my.yaml"):
        assert part in message


def test_pictures_as_they_are_must_fit(tmp_path):
    message = refused(save_pictures(tmp_path, size=(40, 32)), SMALL, Preset())
    assert "expects float32 [N,3,32,32]" in message
    assert "a.png holds float32 [1,3,40,32]" in message


def test_layout_and_channels_are_told_apart(tmp_path):
    save_pictures(tmp_path)
    assert "set layout: NHWC" in refused(tmp_path, (InputSpec("x", F32, ("N", 32, 32, 3)),), UNIT)
    assert "channels: GRAY" in refused(tmp_path, (InputSpec("x", F32, ("N", 1, 32, 32)),), IMAGENET)
    nhwc = open_data(tmp_path, (InputSpec("x", F32, ("N", 32, 32, 3)),), Preset(layout="NHWC"))
    assert nhwc[0].feed["x"].shape == (1, 32, 32, 3)


def test_models_of_uint8_and_float16(tmp_path):
    save_pictures(tmp_path)
    raw = (InputSpec("x", np.dtype(np.uint8), ("N", 3, 32, 32)),)
    x = open_data(tmp_path, raw, Preset(scale=1))[0].feed["x"]
    assert (x.dtype, x[0, :, 0, 0].tolist()) == (np.uint8, [0, 20, 30])
    assert "raw pixels" in refused(tmp_path, raw, UNIT)
    half = (InputSpec("x", np.dtype(np.float16), ("N", 3, 32, 32)),)
    assert open_data(tmp_path, half, UNIT)[0].feed["x"].dtype == np.float16


def test_a_broken_picture_is_named_when_it_is_read(tmp_path):
    save_pictures(tmp_path)
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 nothing")
    data = open_data(tmp_path, SMALL, UNIT)
    with pytest.raises(CalibrationError, match=r"b\.jpg is not a readable picture"):
        data[1]


def test_uint8_arrays_that_look_like_pictures_take_the_preset_too(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    want = open_data(tmp_path / "x.png", SMALL, IMAGENET)[0].feed["input"]
    np.save(tmp_path / "x.npy", pixels)
    for source in ([{"input": pixels}], iter([{"input": pixels.transpose(2, 0, 1)}]), pixels[None], tmp_path / "x.npy"):
        np.testing.assert_array_equal(open_data(source, SMALL, IMAGENET)[0].feed["input"], want)


def test_a_preset_that_is_not_used_is_noted():
    assert "preset imagenet was not used" in open_data(feeds(), VECTOR, IMAGENET).notes[0]


# --- files of arrays


def test_a_folder_of_npy(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((1, 4), i, np.float32))
    data = open_data(tmp_path, VECTOR)
    assert [s.name for s in data] == ["0.npy", "1.npy", "2.npy"]
    assert firsts(data) == [0, 1, 2]
    assert "several" not in refused(tmp_path, TEXT)
    assert "2 inputs: 'ids', 'mask'" in refused(tmp_path, TEXT)


def test_a_folder_of_npz_with_different_lengths_and_batches(tmp_path):
    for i, shape in enumerate([(1, 5), (2, 9), (1, 1)]):
        np.savez(tmp_path / f"{i}.npz", ids=np.ones(shape, np.int32), mask=np.ones(shape, bool))
    data = open_data(tmp_path, TEXT)
    assert [s.feed["ids"].shape for s in data] == [(1, 5), (2, 9), (1, 1)]
    assert {a.dtype for s in data for a in s.feed.values()} == {I64}


def test_one_input_needs_no_key(tmp_path):
    np.savez(tmp_path / "a.npz", np.ones((1, 4), np.float32))
    assert list(open_data(tmp_path, VECTOR)[0].feed) == ["x"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_npz_with_a_sample_axis_and_constants(tmp_path, save):
    specs = (
        InputSpec("sound", F32, ("N", 8)),
        InputSpec("state", F32, (2, "N", 4)),
        InputSpec("rate", I64, ()),
        InputSpec("table", F32, (3, 3)),
    )
    path = tmp_path / "all.npz"
    save(path, sound=rows(5, 8), state=rows(5, 2, 1, 4), rate=np.array(16000), table=np.eye(3, dtype=np.float32))
    with open_data(path, specs) as data:
        assert len(data) == 5
        assert data[3].name == "all.npz[3]"
        feed = data[3].feed
        np.testing.assert_array_equal(feed["sound"], rows(5, 8)[3:4])
        np.testing.assert_array_equal(feed["state"], rows(5, 2, 1, 4)[3])
        assert feed["rate"].shape == ()
        assert feed["rate"] == 16000
        np.testing.assert_array_equal(feed["table"], np.eye(3))


@pytest.mark.parametrize(
    ("array", "shape", "count", "sample"),
    [
        (rows(6, 4), ("N", 4), 6, (1, 4)),
        (rows(6, 4), (1, 4), 6, (1, 4)),
        (rows(6, 4), (2, 4), 3, (2, 4)),
        (rows(6, 1, 4), ("N", 4), 6, (1, 4)),
        (rows(6, 3, 4), ("N", 4), 6, (3, 4)),
        (rows(1, 4)[0], ("N", 4), 1, (1, 4)),
        (rows(6, 1)[:, 0], ("N", 1), 6, (1, 1)),
        (rows(6, 1)[:, 0], ("N",), 6, (1,)),
        (rows(6, 1)[:, 0], (), 6, ()),
        (np.asfortranarray(rows(6, 4)), ("N", 4), 6, (1, 4)),
    ],
)
def test_where_the_samples_of_one_npy_lie(tmp_path, array, shape, count, sample):
    np.save(tmp_path / "a.npy", array)
    specs = (InputSpec("x", F32, shape),)
    for source in (tmp_path / "a.npy", array, {"x": array}):
        data = open_data(source, specs)
        assert (len(data), data[0].feed["x"].shape) == (count, sample)
        whole = np.concatenate([s.feed["x"].ravel() for s in data])
        np.testing.assert_array_equal(whole, array.ravel())


def test_a_big_npz_is_not_read_whole(tmp_path):
    path = tmp_path / "big.npz"
    np.savez(path, x=np.ones((2000, 1000), np.float32))
    specs = (InputSpec("x", F32, ("N", 1000)),)
    data = open_data(path, specs)
    tracemalloc.start()
    for sample in data:
        assert sample.feed["x"].shape == (1, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # of 8 MB


def test_samples_survive_close(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=rows(3, 4))
    data = open_data(tmp_path / "a.npz", VECTOR)
    kept = data[2].feed["x"]
    data.close()
    np.testing.assert_array_equal(kept, rows(3, 4)[2:])


def save_pb(folder, **arrays):
    from onnx import numpy_helper

    folder.mkdir(parents=True)
    for i, (name, value) in enumerate(arrays.items()):
        (folder / f"input_{i}.pb").write_bytes(numpy_helper.from_array(value, name).SerializeToString())


def test_test_data_set_folders(tmp_path):
    for i in (0, 1, 2, 10):
        ids = np.full((1, 3), i, np.int64)
        # by name where the name is an input's, else by number
        save_pb(tmp_path / f"test_data_set_{i}", **({"mask": ids + 1, "ids": ids} if i else {"": ids, "?": ids + 1}))
    data = open_data(tmp_path, TEXT)
    assert firsts(data, "ids") == [0, 1, 2, 10]
    assert firsts(data, "mask") == [1, 2, 3, 11]
    assert data[3].name == "test_data_set_10"
    assert len(open_data(tmp_path / "test_data_set_1", TEXT)) == 1
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(b"\xff\xff")
    assert "input_0.pb is not a readable TensorProto" in refused(tmp_path, TEXT)


# --- broken and hostile files


def header(shape, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("content", [b"", b"junk", header((1, 4)) + b"\0" * 3, header((10**9, 10**6))])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_broken_array_file_is_named(tmp_path, content, suffix, as_folder):
    path = tmp_path / f"bad.{suffix}"
    if suffix == "npz" and content[:1] == b"\x93":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    else:
        path.write_bytes(content)
    assert f"bad.{suffix} cannot be read" in refused(tmp_path if as_folder else path)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    whole = io.BytesIO()
    (np.save if suffix == "npy" else np.savez)(whole, np.ones((1, 4000), np.float32))
    (tmp_path / f"cut.{suffix}").write_bytes(whole.getvalue()[:-300])
    assert f"cut.{suffix} cannot be read" in refused(tmp_path, (InputSpec("x", F32, (1, 4000)),))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_python_objects_are_never_unpickled(tmp_path, suffix):
    path = tmp_path / f"evil.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for source in (tmp_path, path):
        message = refused(source)
        assert f"evil.{suffix} cannot be read" in message
        assert "save plain arrays" in message


def test_a_folder_of_two_kinds(tmp_path):
    save_pictures(tmp_path, ("a.png",))
    np.save(tmp_path / "b.npy", rows(1, 4))
    assert "1 pictures and 1 .npy" in refused(tmp_path, VECTOR, UNIT)


@pytest.mark.parametrize("source", [None, "", "nowhere", "empty", "data.csv", [], iter([]), 3])
def test_nothing_to_read(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("data.csv").write_text("1,2")
    message = refused(source)
    if source in (None, ""):
        assert "calibration data is needed" in message and "a .npz of arrays" in message
    else:
        assert "module:function" in message


# --- iterables and functions


def test_a_list_of_dicts_is_used_in_place():
    data = open_data(feeds(), VECTOR)
    assert [s.name for s in data] == ["#0", "#1", "#2"]
    assert isinstance(data[0], Sample)
    assert firsts(data) == [0, 1, 2] == firsts(data)


@pytest.mark.parametrize("close", ["close", "forget"])
def test_a_generator_is_spooled_and_removed(tmp_path, monkeypatch, close):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = open_data((f for f in feeds(5)), VECTOR)
    assert firsts(data) == [0, 1, 2, 3, 4] == firsts(data)
    assert list(tmp_path.iterdir())
    if close == "close":
        data.subset([0]).close()
        assert firsts(data.subset([1])) == [1]
        data.close()
    else:
        del data
        gc.collect()
    assert not list(tmp_path.iterdir())


def test_an_endless_generator_stops_at_the_limit():
    def endless():
        i = 0
        while True:
            yield {"x": np.full((1, 4), i, np.float32)}
            i += 1

    data = open_data(endless(), VECTOR, limit=4)
    assert firsts(data) == [0, 1, 2, 3]
    assert "the first 4 samples" in data.notes[0]


def test_odd_names_and_types_survive_the_spool():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    brain = np.dtype(ml_dtypes.bfloat16)
    specs = (InputSpec("file", F32, ()), InputSpec("a/b:0", brain, ("N",)))
    (sample,) = open_data(iter([{"a/b:0": np.array([1.5, 2]), "file": 3.0}]), specs)
    assert sample.feed["file"] == 3
    assert sample.feed["a/b:0"].dtype == brain
    assert sample.feed["a/b:0"].astype(float).tolist() == [1.5, 2]


def test_a_reader_written_for_onnxruntime():
    class Reader:
        def __init__(self):
            self.left = feeds(2)

        def get_next(self):
            return self.left.pop(0) if self.left else None

    assert firsts(open_data(Reader(), VECTOR)) == [0, 1]


def test_functions_of_a_file_and_of_a_module(tmp_path, monkeypatch):
    code = """
import numpy as np
def stream():
    for i in range(3):
        yield {"x": np.full((1, 4), i, np.float32)}
def listed():
    return list(stream())
def breaks():
    yield {"x": np.zeros((1, 4), np.float32)}
    raise RuntimeError("disk\\non fire")
NUMBER = 3
"""
    (tmp_path / "my_calib_data.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    for place in (f"{tmp_path}/my_calib_data.py", "my_calib_data.py", "my_calib_data"):
        for function in ("stream", "listed"):
            assert firsts(open_data(f"{place}:{function}", VECTOR)) == [0, 1, 2]
    assert sys.path == path
    assert "at sample 1 raised RuntimeError: disk on fire, at " in refused("my_calib_data:breaks")
    assert "no function 'streem' (it has: stream, listed, breaks)" in refused("my_calib_data.py:streem")
    assert "no function 'NUMBER'" in refused("my_calib_data:NUMBER")
    assert "cannot be imported: ModuleNotFoundError" in refused("no_such_module:stream")
    assert "gone.py is not there" in refused("gone.py:stream")
    sys.modules.pop("my_calib_data")


def test_a_sample_that_is_no_dict():
    message = refused([object()])
    assert "list #0 is of type object, which holds no arrays" in message
    assert "{input name: array}" in message
    assert "transform=" in message


def test_random_data_is_said_to_be_random():
    specs = (
        InputSpec("x", F32, ("batch", 3, "h", "w")),
        InputSpec("ids", I64, ("batch", "len")),
        InputSpec("mask", I64, ("batch", "len")),
        InputSpec("state", F32, (2, "batch", 8)),
        InputSpec("pixels", np.dtype(np.uint8), (None, 4, 4, 3)),
        InputSpec("on", np.dtype(bool), ()),
    )
    data = open_data("random", specs, limit=3, seed=7)
    assert data.random
    assert len(data) == 3
    assert "random data" in data.notes[0]
    feed = data[1].feed
    assert feed["x"].shape == (1, 3, 64, 64)
    assert feed["ids"].shape == feed["mask"].shape
    assert feed["state"].shape == (2, 1, 8)
    assert set(np.unique(feed["ids"])) <= {0, 1}
    assert feed["pixels"].max() > 1
    np.testing.assert_array_equal(feed["x"], open_data("random", specs, seed=7)[1].feed["x"])
    assert (feed["x"] != open_data("random", specs, seed=8)[1].feed["x"]).any()
    assert "no known rank" in refused("random", (InputSpec("x", F32, None),))


# --- what fits, what does not


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.float64, np.float32),
        (np.float32, np.float16),
        (np.float16, np.float32),
        (np.int32, np.int64),
        (np.int64, np.int32),
        (np.bool_, np.int64),
        (np.int64, np.bool_),
        (">f4", np.float32),
    ],
)
def test_safe_casts_are_done(given, wanted):
    x = np.array([[0, 1, 1, 0]], dtype=given)
    got = open_data([{"x": x}], (InputSpec("x", np.dtype(wanted), ("N", 4)),))[0].feed["x"]
    assert got.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(got, [[0, 1, 1, 0]])


def test_a_missing_batch_axis_is_added(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 32, 32), np.float32))
    assert open_data(tmp_path, SMALL)[0].feed["input"].shape == (1, 3, 32, 32)


WRONG = [
    # given, wanted dtype, wanted shape, parts of the message
    (np.zeros((640, 640, 3), np.uint8), F32, ("N", 3, 640, 640),
     ["expects float32 [N,3,640,640]", "holds uint8 [640,640,3]", 'try preset="coco-640"']),
    (np.zeros((1, 3, 224, 224), np.uint8), F32, ("N", 3, 224, 224), ['try preset="imagenet"']),
    (np.zeros((48, 90, 3), np.uint8), F32, ("N", 3, 48, "W"), ['try preset="text-line"']),
    (np.zeros((1, 224, 224, 3), np.float32), F32, (None, 3, 224, 224), ["[N,3,224,224]", "x.transpose(0, 3, 1, 2)"]),
    (np.zeros((224, 224, 3), np.float32), F32, (1, 3, 224, 224), ["x[None].transpose(0, 3, 1, 2)"]),
    (np.zeros((1, 1, 4), np.float32), F32, ("N", 4), ["one too many: use x[0]"]),
    (np.zeros((5, 1, 4), np.float32), F32, ("N", 4), ["each x[i] as a sample"]),
    (np.zeros((1, 5), np.float32), F32, ("N", 4), ["axis 1 must be 4, not 5"]),
    (np.zeros((2, 4), np.float32), F32, (3, 4), ["takes 3 at a time"]),
    (np.zeros((1, 2, 3, 4, 5), np.float32), F32, ("N", 4), ["it has 5 axes, the input 2"]),
    (np.zeros((1, 4), np.int64), F32, ("N", 4), ["expects float32", "holds int64", ".astype('float32')"]),
    (np.zeros((1, 4), np.uint8), F32, ("N", 4), [".astype('float32')"]),
    (np.zeros((1, 4), np.float32), I64, ("N", 4), ["expects int64", "holds float32"]),
    (np.full((1, 4), 1 << 40), np.dtype(np.int32), ("N", 4), ["values 1099511627776", "do not fit int32"]),
    (np.full((1, 4), -1), np.dtype(np.uint8), ("N", 4), ["do not fit uint8"]),
    (np.full((1, 4), 1e6, np.float32), np.dtype(np.float16), ("N", 4), ["do not fit float16"]),
    (np.array([["a"]]), F32, ("N", 1), ["expects float32 [N,1]"]),
    (np.array([[{}]]), F32, ("N", 1), ["holds object"]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "dtype", "shape", "parts"), WRONG)
@pytest.mark.parametrize("kind", ["list", "stream", "npy"])
def test_a_sample_that_does_not_fit_is_one_line(tmp_path, given, dtype, shape, parts, kind):
    if kind == "npy" and given.dtype == object:
        pytest.skip("never unpickled")
    np.save(tmp_path / "a.npy", given, allow_pickle=True)
    source = {"list": [{"x": given}], "stream": iter([{"x": given}]), "npy": tmp_path}[kind]
    message = refused(source, (InputSpec("x", dtype, shape),))
    assert message.startswith("input 'x' expects ")
    assert ("a.npy" if kind == "npy" else " #0 ") in message
    for part in parts:
        assert part in message


def test_names_are_checked_and_the_closest_is_told():
    ids = np.ones((1, 3), np.int64)
    said = refused([{"idz": ids, "mask": ids}], TEXT)
    assert "input 'ids' expects int64 [N,T]; list #0 holds only 'idz', 'mask' ('idz' may be meant" in said
    assert "input 'mask' expects int64 [N,T]; list #0 holds only 'ids'" in refused([{"ids": ids}], TEXT)


def test_a_later_sample_is_checked_when_it_is_read():
    data = open_data([*feeds(2), {"x": np.zeros((1, 5), np.float32)}], VECTOR)
    with pytest.raises(CalibrationError, match="list #2 holds float32"):
        list(data)


def test_free_and_unknown_shapes():
    specs = (InputSpec("x", F32, None),)
    data = open_data([{"x": np.ones(s, np.float32)} for s in [(1,), (2, 3), (4, 5, 6)]], specs)
    assert [s.feed["x"].shape for s in data] == [(1,), (2, 3), (4, 5, 6)]
    assert str(specs[0]) == "float32 of any shape"


# --- the dataset


def test_limit_takes_evenly_spaced_samples():
    data = open_data(feeds(10), VECTOR, limit=4)
    for quarter, first in enumerate(firsts(data)):
        assert int(quarter * 2.5) <= first < int((quarter + 1) * 2.5)
    assert data.notes == ("4 of 10 samples, evenly spaced",)
    assert len(open_data(feeds(3), VECTOR, limit=10)) == 3
    assert "0 calibration samples" in refused(feeds(), limit=0)


def test_subsets_are_views():
    data = open_data(feeds(10), VECTOR, limit=5)
    whole = firsts(data)
    part = data.subset([4, 0])
    assert isinstance(part, Dataset)
    assert firsts(part) == [whole[4], whole[0]]
    assert firsts(part.subset([1])) == whole[:1]
    with pytest.raises(IndexError):
        part[2]


def test_digests_follow_the_content_and_not_the_names(tmp_path):
    for folder in ("one", "two"):
        save_pictures(tmp_path / folder)

    def digests(source, **options):
        return open_data(source, SMALL, UNIT, **options).digests()

    base = digests(tmp_path / "one")
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in base)
    assert base == digests(tmp_path / "two")
    assert digests(tmp_path / "one", limit=2) == [base[0], base[len(base) // 2]]
    first = sorted((tmp_path / "two").rglob("*.png"))[0]
    first.rename(first.with_name("0.png"))
    assert base == digests(tmp_path / "two")
    save_pictures(tmp_path / "two", ("0.png",), value=99)
    changed = digests(tmp_path / "two")
    assert changed[0] != base[0]
    assert changed[1:] == base[1:]


def test_the_hash_of_a_preset_follows_what_it_does(tmp_path):
    save_pictures(tmp_path)
    hashes = [open_data(tmp_path, SMALL, preset).preset_hash for preset in (UNIT, IMAGENET)]
    renamed = open_data(tmp_path, SMALL, dataclasses.replace(UNIT, name="mine")).preset_hash
    assert hashes[0] == renamed != hashes[1]


def test_arrays_have_digests_however_they_come(tmp_path):
    np.savez(tmp_path / "a.npz", x=rows(3, 4))
    stacked = open_data(tmp_path / "a.npz", VECTOR).digests()
    assert len(set(stacked)) == 3
    listed = [{"x": rows(3, 4)[i : i + 1]} for i in range(3)]
    assert stacked == open_data(listed, VECTOR).digests()
    assert stacked == open_data(iter(listed), VECTOR).digests()
    assert stacked[::-1] == open_data(listed[::-1], VECTOR).digests()


@pytest.mark.parametrize(("n", "held"), [(2, 1), (3, 1), (4, 1), (8, 2), (10, 2), (64, 16), (1001, 250)])
def test_split(n, held):
    kept, held_out = split(n)
    assert sorted(kept + held_out) == list(range(n))
    assert len(held_out) == held
    assert (kept, held_out) == (sorted(kept), sorted(held_out)) == split(n)


def test_a_split_of_one_sample_or_none():
    assert split(1) == ([0], [0])
    assert split(0) == ([], [])


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("n", [64, 160, 1000])
def test_each_class_is_held_out_whether_samples_are_sorted_or_go_round(n, classes):
    _, held_out = split(n)
    fair = len(held_out) / classes
    for found in ([i * classes // n for i in held_out], [i % classes for i in held_out]):
        counts = [found.count(k) for k in range(classes)]
        assert min(counts) >= 1
        assert max(counts) <= 2 * fair + 1


def test_a_limit_takes_each_class_whether_samples_are_sorted_or_go_round():
    for values in (np.repeat(np.arange(10), 100), np.tile(np.arange(10), 100)):
        few = open_data({"x": np.tile(values[:, None].astype(np.float32), 4)}, VECTOR, limit=100)
        counts = np.bincount([int(sample.feed["x"].flat[0]) for sample in few], minlength=10)
        assert counts.min() >= 4


def test_split_by_another_share():
    kept, held_out = split(10, 0.5)
    assert sorted(kept + held_out) == list(range(10))
    assert len(held_out) == 5
    assert split(3, 0) == ([0, 1, 2], [0, 1, 2])
    with pytest.raises(CalibrationError, match="holdout is 1"):
        split(3, 1)


# --- the summary


def test_a_summary_flags_raw_pixels():
    specs = (InputSpec("x", F32, ("N", 3, "H", 4)), InputSpec("rate", I64, ()))
    pixels = np.arange(0, 240, 10, dtype=np.float32).reshape(1, 3, 2, 4)
    data = open_data([{"x": pixels, "rate": 8}, {"x": pixels.repeat(2, 2), "rate": 8}], specs)
    x, rate = describe_inputs(data)
    assert (x.name, x.dtype, x.shape, x.low, x.mean, x.high) == ("x", "float32", "1x3x2..4x4", 0, 115, 230)
    assert x.flags == (PIXELS,)
    assert (rate.shape, rate.flags) == ("scalar", ("constant",))
    (normal,) = describe_inputs(open_data([{"x": pixels / 255}], specs[:1]))
    assert normal.flags == ()


def test_a_summary_flags_nan():
    x = np.array([[np.nan, np.inf, 1, 3]], np.float32)
    (found,) = describe_inputs(open_data([{"x": x}], VECTOR), k=1)
    assert found.flags == ("NaN", "Inf")
    assert (found.low, found.mean, found.high) == (1, 2, 3)


# --- damage


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("folder", [False, True])
def test_a_member_of_another_checksum_is_refused_with_its_file(tmp_path, save, folder):
    path = tmp_path / "a.npz"
    save(path, x=rows(6, 4))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == 1
    whole = path.read_bytes()
    sum_at = whole.rindex(b"PK\x01\x02") + 16  # the central directory's CRC-32, which Python holds bytes against
    path.write_bytes(whole[:sum_at] + bytes([whole[sum_at] ^ 1]) + whole[sum_at + 1 :])
    with pytest.raises(CalibrationError, match=r"a\.npz cannot be read: Bad CRC-32"):
        open_data(tmp_path if folder else path, VECTOR)


def test_a_folder_that_changes_while_it_is_searched_is_named(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", rows(1, 4))

    def gone(self, pattern):
        raise FileNotFoundError(2, "No such file or directory", str(self / "gone"))
        yield

    monkeypatch.setattr(Path, "rglob", gone)
    with pytest.raises(CalibrationError, match=r"folder of samples .* cannot be searched: No such file .* at .*gone"):
        open_data(tmp_path, VECTOR)
