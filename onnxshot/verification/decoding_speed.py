"""Time decoders with a cache: a prompt, and one token behind it, of all models in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.comparison.token_outputs import TokenOutput
from onnxshot.comparison.token_scores import Arrays
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.open_models import OpenModels
from onnxshot.runtimes.ort_bench import Latency, bench
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.verification.decoder_feeds import Window

PROMPT = 64
"""Tokens of the prompt that is timed; the token that is timed stands behind as many."""


def decoding_feeds(
    model: Path | LeanModel, sample: Arrays, output: TokenOutput, *, opened: OpenModels | None = None, threads: int = 2
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The feeds of a prompt of PROMPT tokens, and of one token behind it.

    The ids of the sample are repeated. The pasts are those that the model makes of the prompt; all models that are
    timed get the same, as their values take no time.

    Args:
        model: A decoder with a cache.
        sample: A sample that it runs on.
        output: Its logits, ids and cache.
        opened: Where its session is kept.
        threads: CPU threads, if it is not.

    Raises:
        ModelError: The model does not run on these feeds.
    """
    window = Window(output, sample).of_length(PROMPT + 1)
    prompt = window.part(0, PROMPT, {})
    kept = opened is not None and isinstance(model, Path) and opened.keeps(model)
    runner = opened.runner(model) if kept and opened is not None and isinstance(model, Path) else None
    runner = runner or Runner(model, threads=threads)
    made = runner.run(prompt, list(output.presents.values()))
    pasts = {name: np.array(value) for name, value in window.following({}, made).items()}
    return prompt, window.part(PROMPT, PROMPT + 1, pasts)


def time_decoding(
    models: Sequence[Path | LeanModel], sample: Arrays, output: TokenOutput, *, threads: int = 2,
    opened: OpenModels | None = None, **how: Any,
) -> list[tuple[Latency, Latency]]:  # fmt: skip
    """Time a prompt and one token behind it, of all models in turns.

    Args:
        models: Decoders with a cache; ratios refer to the first.
        sample: A sample that they run on.
        output: The logits, ids and cache of the first.
        threads: CPU threads of each.
        opened: Where sessions of files are kept.
        how: Further arguments of `bench`.

    Returns:
        The latency of the prompt and of the token, for each model.

    Raises:
        ModelError: A model does not run on these feeds.
    """
    prompt, token = decoding_feeds(models[0], sample, output, opened=opened, threads=threads)
    timed = [bench(models, [feed], threads=threads, opened=opened, **how) for feed in (prompt, token)]
    return list(zip(*timed, strict=True))


def with_decoding(rows: Sequence[Latency], timed: Sequence[tuple[Latency, Latency]]) -> list[Latency]:
    """The latencies of models, with those of their prompt and token."""
    return [replace(row, prompt=prompt, token=token) for row, (prompt, token) in zip(rows, timed, strict=True)]
