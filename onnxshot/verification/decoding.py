"""Compare two decoders as they are deployed: a prompt, then token after token, each model on its own cache.

The other figures come from whole samples, with pasts that both models share. Here each model reads what it wrote, and
single tokens may run by other kernels than many. The tokens that are fed are those of the sample. The candidate scores
the same positions at once as well: only a difference between these two is a fault of decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.readers import Dataset
from onnxshot.comparison.token_outputs import TokenOutput
from onnxshot.comparison.token_scores import Arrays, TokenScores, kept_positions
from onnxshot.errors import ModelError
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.verification.decoder_feeds import Window

WINDOWS = 4
"""Most samples that are decoded."""
STEPS = 16
"""Most tokens of each that are fed one by one."""
_LEAST = 4  # positions of a sample that is decoded: two of prompt, two steps


@dataclass(slots=True)
class Decoded:
    """What steps on own caches showed.

    Attributes:
        scores: Figures of the logits of all steps.
        at_once: The same, where the candidate runs each sample as a whole.
        windows: Samples decoded.
        prompt: Positions of the longest prompt.
        steps: Tokens fed one by one, of all samples.
        note: Why nothing, or not everything, was decoded; else empty.
    """

    scores: TokenScores
    at_once: TokenScores
    windows: int = 0
    prompt: int = 0
    steps: int = 0
    note: str = field(default="")

    def figures(self) -> dict[str, Any]:
        """The figures, with the keys that reports use; empty if nothing was decoded."""
        if not self.scores.positions:
            return {}
        whole = self.at_once.perplexity if self.at_once.scored == self.scores.scored else None
        return {
            "windows": self.windows, "prompt": self.prompt, "steps": self.steps, **self.scores.figures(),
            **({"perplexity_at_once": whole} if whole is not None else {}),
        }  # fmt: skip


def decode(
    reference: Runner, candidate: Runner, samples: Dataset | Sequence[Any], output: TokenOutput, *, causal: bool = True
) -> Decoded:
    """Decode a few samples with both models: half of each as a prompt, then single tokens.

    Args:
        reference: The float model.
        candidate: The model to compare with it.
        samples: Samples; a few of them, evenly spaced, are decoded.
        output: The logits, the ids and the cache of the reference.
        causal: As in `TokenScores`.

    Returns:
        The figures. A model that does not run on its own cache leaves a note instead.
    """
    found = Decoded(TokenScores(output, causal), TokenScores(output, causal))
    missing = [name for name in output.presents.values() if name not in candidate.outputs]
    if missing:
        found.note = f"not decoded token by token: the candidate lacks output {missing[0]!r}"
        return found
    step = max(1, len(samples) // WINDOWS)
    for number in range(0, len(samples), step)[:WINDOWS]:
        window = Window(output, samples[number].feed)
        if window.ids.ndim != 2 or window.ids.shape[1] < _LEAST or not set(output.presents) <= set(window.feed):
            continue
        prompt = window.ids.shape[1] // 2
        try:
            _decode(reference, candidate, window, prompt, found)
        except ModelError as e:
            found.note = f"not decoded token by token: {e.message}"
            return found
        found.windows += 1
        found.prompt = max(found.prompt, prompt)
    if not found.windows and not found.note:
        found.note = f"not decoded token by token: no sample of {_LEAST} tokens or more"
    return found


def _decode(reference: Runner, candidate: Runner, window: Window, prompt: int, found: Decoded) -> None:
    seen = kept_positions(window.feed, window.output)
    ids = window.ids
    stop = min(ids.shape[1], prompt + STEPS)
    whole = candidate.run(window.feed, [window.output.logits])[window.output.logits]
    steps = zip(_steps(reference, window, prompt, stop), _steps(candidate, window, prompt, stop), strict=True)
    for position, (wanted, got) in enumerate(steps, prompt):
        following = np.full(len(ids), -1, np.int64)
        if position + 1 < ids.shape[1]:
            following = np.where(seen[:, position] & seen[:, position + 1], ids[:, position + 1], -1)
        at = np.flatnonzero(seen[:, position])
        found.scores.add_rows(wanted, got, at, following)
        if whole.ndim == 3 and whole.shape[1] == ids.shape[1]:  # else the model scores the last position alone
            found.at_once.add_rows(wanted, whole[:, position], at, following)
        found.steps += 1


def _steps(model: Runner, window: Window, prompt: int, stop: int) -> Iterator[NDArray[Any]]:
    """The logits of each token behind the prompt, [batch, vocabulary]. The model reads what it wrote itself.

    Raises:
        ModelError: The model does not run on its own cache.
    """
    names = [window.output.logits, *window.output.presents.values()]
    made: Arrays = model.run(window.part(0, prompt, {}), names)
    pasts = window.following({}, made)
    _check_growth(window, pasts, prompt)
    for position in range(prompt, stop):
        made = model.run(window.part(position, position + 1, pasts), names)
        logits = made[window.output.logits]
        pasts = window.following(pasts, made)
        yield logits[:, -1] if logits.ndim == 3 else logits


def _check_growth(window: Window, pasts: Arrays, prompt: int) -> None:
    """Raise ModelError if no cache has grown by the prompt, as where it is a buffer of constant length."""
    grown = window.before + prompt
    if not any(grown in value.shape != window.feed[name].shape for name, value in pasts.items()):
        raise ModelError("the cache does not grow by the prompt: it may be a buffer of constant length")
