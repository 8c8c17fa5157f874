"""Guess how dropped files become inputs of a model, from its inputs and the kinds of the files, and say why."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from onnxshot.calibration.checks import InputSpec, preset_for
from onnxshot.calibration.language_inputs import language_inputs, takes_text
from onnxshot.calibration.pictures import fit_preset, image_input
from onnxshot.calibration.preset import Preset, load_preset, preset_names
from onnxshot.calibration.sound_files import SOUNDS
from onnxshot.calibration.sound_inputs import PREPROCESSOR, fit_sound
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_files import TEXTS
from onnxshot.calibration.tokenizer import FILE as TOKENIZER
from onnxshot.errors import CalibrationError
from onnxshot.files.regular_files import PICTURES
from onnxshot.graph.load import other_format
from onnxshot.ui.request import NO_PRESET, OWN_PRESET

ZIP, PB, ONNX = ".zip", ".pb", ".onnx"
_KINDS = {"pictures": PICTURES, "sounds": SOUNDS, ".npz files": (".npz",), ".npy files": (".npy",)}
_DETECTOR = 320  # pixels: detectors rarely take smaller pictures
_SHOWN = 4  # of inputs, in one line
_FEW = 16  # with fewer samples, a quarter of them proves little

Kinds = Mapping[str, int]
"""How many files there are of a suffix in lower case, or of one of the names tokenizer.json and
preprocessor_config.json."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What is known of a run before it begins.

    Attributes:
        preset: the choice that most likely fits: the name of a preset, NO_PRESET, or OWN_PRESET.
        why: one or two sentences that say so.
        misfits: name of a preset -> why it cannot be used here. Presets that fit are left out.
        own: text of a YAML file that fits the model, where the user must complete one; empty otherwise.
        problems: what will go wrong, or should be known, each with what to do.
        blocked: whether a run cannot begin, as the model is not one .onnx file.
        inputs: the inputs of the model, in words.
    """

    preset: str = NO_PRESET
    why: str = ""
    misfits: Mapping[str, str] = field(default_factory=dict)
    own: str = ""
    problems: tuple[str, ...] = ()
    blocked: bool = False
    inputs: tuple[str, ...] = ()


def guess(graph: bytes | None, beside: Kinds, samples: Kinds) -> Guess:
    """Guess from what was dropped.

    Args:
        graph: an ONNX GraphProto that holds the inputs and outputs of the model, and no more; None without a model.
        beside: the files that were dropped as the model.
        samples: the files that were dropped as samples.
    """
    specs, problems = None, list(_of_model(beside))
    outputs: tuple[str, ...] = ()
    if graph is not None:
        try:
            specs, outputs = _read(graph)
        except CalibrationError as e:
            problems.append(str(e))
    found = Guess() if not samples else _of_samples(specs, outputs, beside, samples)
    inputs = tuple(f"{spec.name}: {spec}" for spec in specs or ())
    blocked = bool(beside) and beside.get(ONNX) != 1
    return replace(found, problems=(*problems, *found.problems), blocked=blocked, inputs=inputs)


def _read(graph: bytes) -> tuple[list[InputSpec], tuple[str, ...]]:
    """The inputs and the names of the outputs. Raises CalibrationError for what takes or gives no tensors."""
    try:
        proto = onnx.GraphProto.FromString(graph)
    except DecodeError:
        raise CalibrationError("the model is damaged", "export or copy it again") from None
    specs = []
    for value in proto.input:
        tensor = value.type.tensor_type
        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        except KeyError:
            what = f"input {value.name!r} is not a tensor, and samples are tensors only"
            raise CalibrationError(what, "use onnxshot quantize --mode dynamic, which needs no samples") from None
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
        specs.append(InputSpec(value.name, dtype, tuple(dims) if tensor.HasField("shape") else None))
    return specs, tuple(value.name for value in proto.output)


def _of_model(beside: Kinds) -> list[str]:
    """What is wrong with the files that were dropped as the model."""
    count = beside.get(ONNX, 0)
    if count > 1:
        return [f"{count} .onnx files were dropped: keep the one to compress, with its data files"]
    if count or not beside:
        return []
    for suffix in beside:
        if (known := other_format(suffix)) is not None:
            return [f"a {suffix} file is {known[0]}, not ONNX: {known[1]}"]
    return [f"there is no .onnx file among these ({_listed(beside)}): drop the model itself here, samples below"]


def _of_samples(
    specs: Sequence[InputSpec] | None, outputs: Sequence[str], beside: Kinds, samples: Kinds
) -> Guess:  # fmt: skip
    counts = {kind: sum(samples.get(suffix, 0) for suffix in suffixes) for kind, suffixes in _KINDS.items()}
    kinds = [kind for kind, count in counts.items() if count]
    if samples.get(ONNX):
        return Guess(problems=("an .onnx file is among the samples: drop the model above",))
    if len(kinds) > 1:
        listed = " and ".join(f"{counts[kind]} {kind}" for kind in kinds)
        return Guess(problems=(f"there are {listed} among the samples: keep one kind",))
    if not kinds and samples.get(ZIP) and specs is not None:  # what it holds is seen when it has been sent
        if image_input(specs) is not None and not takes_text(specs):
            return _pictures(specs, 0)
        return Guess(why="What the zip holds is seen when the run begins.")
    if kinds == ["pictures"]:
        return _pictures(specs, counts["pictures"])
    if kinds == ["sounds"]:
        return _sounds(specs, beside, samples)
    if kinds:
        return _arrays(specs, kinds[0], counts[kinds[0]])
    if any(samples.get(suffix) for suffix in TEXTS):
        return _texts(specs, outputs, beside, samples)
    if samples.get(PB) or samples.get(ZIP):
        return Guess(why="The arrays are given to the model as they are.")
    what = "pictures, sounds, texts, .npz or .npy files, or a zip of them"
    return Guess(problems=(f"no samples are among these ({_listed(samples)}): drop {what}",))


def _pictures(specs: Sequence[InputSpec] | None, count: int) -> Guess:
    what = f"{count} pictures" if count > 1 else "a picture" if count else "a zip, of pictures most likely"
    told = what[0].upper() + what[1:]
    few = _few(count)
    if specs is None:
        return Guess("imagenet", f"{told}. Drop the model too, and the presets that fit it are told.", problems=few)
    spec = image_input(specs)
    if spec is None or takes_text(specs):
        hint = "give texts (.txt, .jsonl)" if takes_text(specs) else "give .npz files whose arrays fit"
        return Guess(problems=(f"{what}, but no input of the model takes pictures ({_named(specs)}): {hint}",))
    if others := [s for s in specs if s is not spec]:
        needed = _named(others)
        return Guess(problems=(f"{what}, but the model needs more than pictures ({needed}): give .npz files",))
    misfits = {NO_PRESET: "pictures need a preset", **_others("sound", "it is for sounds")}
    fits: dict[str, Preset] = {}
    for name in preset_names("image"):
        preset = load_preset(name)
        assert isinstance(preset, Preset)  # of this kind
        try:
            fits[name] = fit_preset(preset, spec)[0]
        except CalibrationError as e:
            misfits[name] = e.message
    shape = f"{told}, and the model takes {_shape(spec)}"
    if not fits:
        why = f"{shape}: no preset that ships fits. Complete the one below with the numbers that it was trained with."
        return Guess(OWN_PRESET, why, misfits, _own(spec), few)
    likely = preset_for(spec)
    chosen = likely if likely in fits else next(iter(fits))
    rest = " or ".join(name for name, preset in fits.items() if name != chosen and _is_likely(preset))
    also = f" {rest} would fit that shape too: take the one that the model was trained with." if rest else ""
    return Guess(chosen, f"{shape}: {chosen} is usual.{also}", misfits, _own(spec), few)


def _is_likely(preset: Preset) -> bool:
    """Whether a preset that fits is worth a word: those of text lines and of detectors are told by the shape."""
    small = preset.size is not None and min(preset.size) < _DETECTOR
    return preset.height is None and not (preset.resize == "letterbox" and small)


def _own(spec: InputSpec) -> str:
    """A preset file whose layout, channels and size fit the input. Only its scale, mean and std are a guess."""
    shape = spec.shape or (None, 3, None, None)
    last = shape[1] not in (1, 3) and shape[3] in (1, 3)
    channels = "GRAY" if shape[3 if last else 1] == 1 else "RGB"
    height, width = shape[1:3] if last else shape[2:]
    sized = f"size: [{height}, {width}]\n" if isinstance(height, int) and isinstance(width, int) else ""
    scale = 1 if spec.dtype.kind == "u" else 255
    return (
        f"kind: image\n{sized}resize: stretch  # or crop, or letterbox\nchannels: {channels}\n"
        f"layout: {'NHWC' if last else 'NCHW'}\nscale: {scale}  # pixels are divided by this,\n"
        "mean: 0  # then this is taken off,\nstd: 1  # and the rest divided by this\n"
    )


def _sounds(specs: Sequence[InputSpec] | None, beside: Kinds, samples: Kinds) -> Guess:
    problems = []
    if samples.get(".flac") and importlib.util.find_spec("soundfile") is None:
        problems.append(".flac files need pip install 'onnxshot[sound]' where onnxshot ui runs: or give .wav files")
    count = sum(samples.get(suffix, 0) for suffix in SOUNDS)
    told = f"{count} sounds" if count > 1 else "A sound"
    if specs is None:
        return Guess(why=f"{told}. Drop the model too, and what fits it is told.", problems=tuple(problems))
    misfits = _others("image", "it is for pictures")
    presets: dict[str, SoundPreset | None] = {NO_PRESET: None}
    for name in preset_names("sound"):
        preset = load_preset(name)
        assert isinstance(preset, SoundPreset)  # of this kind
        presets[name] = preset
    said: dict[str, str] = {}
    for name, wanted in presets.items():
        try:
            said[name] = "; ".join(fit_sound(specs, wanted, None, "the folder")[1])
        except CalibrationError as e:
            misfits[name] = e.message
    if beside.get(PREPROCESSOR):
        misfits.pop(NO_PRESET, None)
        return Guess(why=f"{told}: {PREPROCESSOR} says how they become inputs.", misfits=misfits)
    if not said:
        return Guess(misfits=misfits, problems=(*problems, misfits[NO_PRESET]))
    chosen = next(iter(said))
    # fit_sound says "no preset was given: the waveform at 16000 Hz is assumed"
    how = said[chosen].split(": ", 1)[-1].removesuffix(" is assumed") if chosen == NO_PRESET else chosen
    rest = " or ".join(name for name in said if name not in (chosen, NO_PRESET))
    also = f" It could be {rest} too: take the one that the model was trained with." if rest else ""
    return Guess(chosen, f"{told}, and by its input the model takes {how}.{also}", misfits, problems=tuple(problems))


def _texts(
    specs: Sequence[InputSpec] | None, outputs: Sequence[str], beside: Kinds, samples: Kinds
) -> Guess:  # fmt: skip
    problems = []
    misfits = _others("image", "it is for pictures") | _others("sound", "it is for sounds")
    if specs is not None:
        try:
            language_inputs(specs, outputs, {"heads": 1, "head": 1})
        except CalibrationError as e:
            return Guess(problems=(f"texts do not fit the model: {e}",), misfits=misfits)
    if not (beside.get(TOKENIZER) or samples.get(TOKENIZER)):
        problems.append(f"texts need the tokenizer of the model: drop its {TOKENIZER} with the texts")
    if importlib.util.find_spec("tokenizers") is None:
        problems.append("texts need pip install 'onnxshot[text]' where onnxshot ui runs")
    why = f"Texts become tokens as {TOKENIZER} says; no preset is needed."
    return Guess(why=why, misfits=misfits, problems=tuple(problems))


def _arrays(specs: Sequence[InputSpec] | None, kind: str, count: int) -> Guess:
    problems = []
    if specs is not None and len(specs) > 1 and kind == ".npy files":
        names = ", ".join(spec.name for spec in specs)
        problems.append(f"the model has {len(specs)} inputs, and a .npy file holds one: give .npz files with {names}")
    many = f"{count} files of arrays" if count > 1 else "A file of arrays"
    why = f"{many}: they are given to the model as they are. Pixels from 0 to 255 need a preset of pictures."
    return Guess(why=why, problems=tuple(problems))


def _few(count: int) -> tuple[str, ...]:
    """A warning of few samples. 0: their number is not known."""
    if not 0 < count < _FEW:
        return ()
    return (f"only {count} samples: a quarter of them judges the result, so its figures are rough; 64 are better",)


def _others(kind: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(preset_names(kind), reason)


def _named(specs: Sequence[InputSpec]) -> str:
    """The first inputs, and how many more there are."""
    more = f"; and {len(specs) - _SHOWN} more" if len(specs) > _SHOWN else ""
    return "; ".join(f"{spec.name}: {spec}" for spec in specs[:_SHOWN]) + more


def _shape(spec: InputSpec) -> str:
    if spec.shape is None:
        return "a tensor of any shape"
    return " × ".join("any" if not isinstance(dim, int) else str(dim) for dim in spec.shape[1:])


def _listed(kinds: Kinds) -> str:
    return ", ".join(f"{count} {kind or 'without a suffix'}" for kind, count in list(kinds.items())[:5])


def parsed(values: Any) -> tuple[Kinds, Kinds]:
    """The files of the model and of the samples in a request, as `Kinds`. Raises ValueError for other values."""
    found = []
    for key in ("beside", "samples"):
        kinds = values.get(key, {})
        if not isinstance(kinds, dict) or not all(type(count) is int and count > 0 for count in kinds.values()):
            raise ValueError(f"{key} must map kinds of files to their numbers")
        found.append({kind[:40]: count for kind, count in list(kinds.items())[:200]})
    return found[0], found[1]
