"""Presets: what they say, and that pictures come out as plain numpy and PIL would make them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxshot.calibration.preprocess import image
from onnxshot.calibration.preset import Preset, load_preset, preset_names
from onnxshot.errors import CalibrationError, UsageError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def noise(height, width, seed=0, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(noise(30, 50)).save(path)
    return path


def normalised(rgb, mean, std, scale=255.0):
    return ((np.asarray(rgb, np.float64) / scale - mean) / std).transpose(2, 0, 1)[None]


def preset(name) -> Preset:
    found = load_preset(name)
    assert found is not None
    return found


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


# --- presets


def test_the_presets_that_ship():
    assert preset_names("image") == ["coco-640", "imagenet", "imagenet-half", "text-line", "unit"]
    assert preset_names("sound") == ["silero-vad", "wav2vec2", "waveform-16k", "whisper"]
    assert preset_names() == sorted(preset_names("image") + preset_names("sound"))
    for name in preset_names():
        assert preset(name).name == name
        assert preset(name).size_is_default


def test_none_is_no_preset():
    assert load_preset("none") is None


def test_imagenet_says_what_torchvision_says():
    p = preset("imagenet")
    assert (p.size, p.resize, p.scale, p.channels, p.layout) == ((224, 224), "crop", 255, "RGB", "NCHW")
    assert p.mean == tuple(IMAGENET_MEAN)
    assert p.std == tuple(IMAGENET_STD)


def test_a_file_extends_a_shipped_preset(tmp_path):
    p = preset(write(tmp_path, "extends: imagenet\nsize: [32, 48]\nchannels: BGR\n"))
    assert (p.size, p.channels, p.mean) == ((32, 48), "BGR", tuple(IMAGENET_MEAN))
    assert not p.size_is_default
    assert preset(write(tmp_path, "extends: imagenet\nlayout: NHWC\n")).size_is_default


def test_a_file_may_turn_text_line_into_pictures_of_one_size(tmp_path):
    p = preset(write(tmp_path, "extends: text-line\nsize: [48, 48]\n"))
    assert (p.size, p.height, p.min_width) == ((48, 48), None, None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("kind: image\nsise: [2, 2]\n", ["unknown key 'sise'", "did you mean size?"]),
        ("size: 224\n", ["size is 224", "[height, width]"]),
        ("size: [0, 224]\n", ["size is [0, 224]"]),
        ("mean: [a, b, c]\n", ["mean is", "list of numbers"]),
        ("scale: true\n", ["scale is True", "a number"]),
        ("scale: 0\n", ["scale is 0"]),
        ("std: [0, 1, 1]\n", ["std", "above 0"]),
        ("mean: [1, 2]\n", ["mean holds 2 numbers", "one number or 3"]),
        ("mean: [123.7, 116.3, 103.5]\nscale: 255\n", ["mean 123.7", "scale: 1"]),
        ("resize: squash\n", ["resize is 'squash'", "stretch, crop, letterbox"]),
        ("channels: rgb\n", ["channels is 'rgb'", "RGB, BGR, GRAY"]),
        ("kind: video\n", ["kind is 'video'", "image"]),
        ("extends: imagnet\n", ["extends: imagnet", "did you mean imagenet?"]),
        ("extends: imagenet\nchannels: GRAY\n", ["mean holds 3 numbers", "GRAY pictures have 1"]),
        ("size: [32, 32]\nheight: 48\n", ["both size and height"]),
        ("min_width: 320\n", ["no height"]),
        ("height: 48\nmin_width: 640\nmax_width: 320\n", ["min_width 640 is above max_width 320"]),
        ("resize: letterbox\npad: 300\n", ["pad 300"]),
        ("size: [1, 2\n", ["is not YAML, line"]),
        ("- a\n- b\n", ["holds no keys"]),
        ("!!python/object/apply:os.getcwd []\n", ["is not YAML"]),
    ],
)
def test_a_wrong_preset_file_is_one_line(tmp_path, text, parts):
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_preset(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", ["imagnet", "resnet", "photo.jpg"])
def test_an_unknown_name_lists_the_names(name):
    with pytest.raises(UsageError, match="coco-640, imagenet, imagenet-half, silero-vad, text-line") as caught:
        load_preset(name)
    assert ("did you mean imagenet?" in str(caught.value)) == (name == "imagnet")


def test_a_missing_preset_file():
    with pytest.raises(UsageError, match=r"nowhere\.yaml is not there"):
        load_preset("nowhere.yaml")


# --- pictures


def test_without_a_size_the_picture_stays_as_it_is(photo):
    x = image(photo, preset("unit"))
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x, normalised(noise(30, 50), 0, 1), atol=1e-6)


def test_stretch(photo):
    p = Preset(size=(16, 24), mean=(0.5,), std=(0.25,))
    want = Image.open(photo).resize((24, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(image(photo, p), normalised(want, 0.5, 0.25), atol=1e-5)


@pytest.mark.parametrize(("size", "covering"), [((20, 20), (20, 33)), ((40, 20), (40, 67)), ((20, 40), (24, 40))])
def test_crop_scales_the_short_side_first(photo, size, covering):
    whole = np.asarray(Image.open(photo).resize(covering[::-1], Image.Resampling.BILINEAR))
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    want = whole[top : top + size[0], left : left + size[1]]
    p = Preset(size=size, resize="crop", mean=tuple(IMAGENET_MEAN), std=tuple(IMAGENET_STD))
    np.testing.assert_allclose(image(photo, p), normalised(want, IMAGENET_MEAN, IMAGENET_STD), atol=1e-5)


@pytest.mark.parametrize("pad", [None, 0])
def test_letterbox_keeps_the_ratio_in_the_middle(photo, pad):
    inner = np.asarray(Image.open(photo).resize((40, 24), Image.Resampling.BILINEAR))
    want = np.full((40, 40, 3), 114 if pad is None else pad)
    want[8:32] = inner
    np.testing.assert_allclose(
        image(photo, Preset(size=(40, 40), resize="letterbox", pad=pad)), normalised(want, 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
def test_a_picture_of_the_right_size_is_not_touched(photo, resize):
    x = image(photo, Preset(size=(30, 50), resize=resize))
    np.testing.assert_allclose(x, normalised(noise(30, 50), 0, 1), atol=1e-6)


def test_bgr_takes_mean_and_std_in_its_own_order(photo):
    x = image(photo, Preset(channels="BGR", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    np.testing.assert_allclose(x, normalised(noise(30, 50)[:, :, ::-1], [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), atol=1e-5)


def test_grey(photo):
    x = image(photo, Preset(channels="GRAY", scale=1))
    assert x.shape == (1, 1, 30, 50)
    np.testing.assert_array_equal(x[0, 0], np.asarray(Image.open(photo).convert("L")))


def test_nhwc(photo):
    x = image(photo, Preset(layout="NHWC", scale=1))
    np.testing.assert_array_equal(x[0], noise(30, 50))


@pytest.mark.parametrize(("width", "inner", "total"), [(40, 80, 320), (200, 400, 400), (500, 640, 640)])
def test_text_line_keeps_the_ratio_between_min_and_max_width(tmp_path, width, inner, total):
    path = tmp_path / "line.png"
    Image.fromarray(noise(24, width)).save(path)
    x = image(path, preset("text-line"))
    bgr = np.asarray(Image.open(path).resize((inner, 48), Image.Resampling.BILINEAR))[:, :, ::-1]
    assert x.shape == (1, 3, 48, total)
    np.testing.assert_allclose(x[..., :inner], normalised(bgr, 0.5, 0.5), atol=1e-5)
    assert (x[..., inner:] == 0).all()


def test_exif_orientation_is_applied(tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(noise(30, 50)).save(path, exif=exif)
    x = image(path, Preset(layout="NHWC", scale=1))
    np.testing.assert_array_equal(x[0], np.rot90(noise(30, 50), -1))


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "L", "1", "CMYK"])
@pytest.mark.parametrize(("channels", "depth"), [("RGB", 3), ("GRAY", 1)])
def test_every_mode_of_picture(tmp_path, mode, channels, depth):
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.fromarray(noise(8, 8)).convert(mode).save(path)
    x = image(path, Preset(channels=channels, scale=1))
    assert x.shape == (1, depth, 8, 8)
    want = Image.open(path).convert("L" if depth == 1 else "RGB")
    np.testing.assert_array_equal(x[0].transpose(1, 2, 0).squeeze(), np.asarray(want))


def test_16_bits_are_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(noise(8, 8, channels=1).astype(np.uint16) * 257).save(path)
    x = image(path, Preset(channels="GRAY", scale=1))
    np.testing.assert_array_equal(x[0, 0], noise(8, 8, channels=1))


def test_the_first_frame_of_an_animation(tmp_path):
    path = tmp_path / "x.gif"
    frames = [Image.new("L", (4, 4), v) for v in (255, 0)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert image(path, Preset()).min() == 1


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_broken_picture_is_named(tmp_path, photo, content):
    path = tmp_path / "broken.png"
    path.write_bytes(photo.read_bytes()[:400] if content is None else content)
    with pytest.raises(CalibrationError, match=r"broken\.png is not a readable picture") as caught:
        image(path, Preset())
    assert "\n" not in str(caught.value)
