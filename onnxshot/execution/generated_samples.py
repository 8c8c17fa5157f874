"""Samples for models of text and sound that no data is given for: random tokens, and synthetic sound.

The second moments of a product's inputs depend on embeddings, norms and earlier weights more than on what is said. They
are good enough to round weights by, and to nothing else: nothing is measured on such samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.language_inputs import language_inputs, takes_text
from onnxshot.calibration.sound import Sounds
from onnxshot.calibration.sound_inputs import beside, fit_sound, sound_input
from onnxshot.calibration.synthetic_sound import syllables, write_wave
from onnxshot.errors import CalibrationError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph.embedding_tables import table_rows
from onnxshot.graph.model import Model
from onnxshot.rewriting.model_inputs import input_specs

_WINDOWS, _TOKENS = 16, 256
_SOUNDS, _SECONDS = 3, 30.0
_SOUND = re.compile(r"mel|input_features|input_values|wave|audio|speech|pcm|sound")  # in names of inputs

Feed = Mapping[str, NDArray[Any]]


def generated_samples(model: Model) -> tuple[list[Feed], str]:
    """Make samples for a model of text or sound.

    Args:
        model: the model, with its path where it has one: a configuration beside it may say how sound is read.

    Returns:
        (samples, what they are in words). No samples for other models, and for those that read what an encoder made.
    """
    try:
        specs = input_specs(model)
        if takes_text(specs):
            return _tokens(model)
        heard = sound_input(specs)
        if heard is not None and _SOUND.search(heard.name.lower()):  # any array of floats may be a waveform
            return _sounds(model)
    except CalibrationError:  # an input that neither a text nor a sound tells
        pass
    return [], ""


def _tokens(model: Model) -> tuple[list[Feed], str]:
    inputs = language_inputs(input_specs(model), [tensor.name for tensor in model.graph.outputs])
    rows = table_rows(model, [spec.name for spec in (inputs.ids, inputs.source) if spec is not None])
    if not rows or inputs.crosses or inputs.sounds or any(past.cross for past in inputs.pasts):
        return [], ""
    rng, count = np.random.default_rng(0), inputs.window or _TOKENS
    sizes = (count, inputs.source_window or count)
    drawn = [[rng.integers(0, min(rows), size).tolist() for size in sizes] for _ in range(_WINDOWS)]
    return [inputs.feed(ids, source=source) for ids, source in drawn], f"{_WINDOWS} windows of {count} random tokens"


def _sounds(model: Model) -> tuple[list[Feed], str]:
    folder = None if model.path is None else Path(model.path).parent
    form, _ = fit_sound(input_specs(model), None, beside(folder), "synthetic sound")
    rate, rng = form.preset.rate, np.random.default_rng(0)
    with scratch() as place:
        paths = [place / f"{number}.wav" for number in range(_SOUNDS)]
        for path in paths:
            write_wave(path, syllables(rng, _SECONDS, rate), rate)
        sounds = Sounds(place, paths, form)
        most = min(len(sounds), _WINDOWS)
        made = [sounds.load(number * len(sounds) // most).feed for number in range(most)]
    return list(made), f"{most} windows of synthetic sound"
