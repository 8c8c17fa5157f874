"""How much the outputs of candidates lose against the float model, as a number that adds up over layers.

For the logits of a language model it is the mean Kullback-Leibler divergence of a position, in nats. For other outputs
it is noise energy over signal energy, the mean over the outputs. Both grow with the square of a small error, so that
the losses of layers that are quantized one at a time add up to about the loss of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.readers import Sample
from onnxshot.comparison.balanced_sqnr import joined, noise_shares, sums_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.comparison.divergence import divergences, log_softmax, row_blocks
from onnxshot.comparison.proto_edits import parsed
from onnxshot.comparison.token_outputs import TokenOutput, token_output
from onnxshot.comparison.token_scores import kept_positions
from onnxshot.runtimes.ort_runtime import Feed, Runnable
from onnxshot.runtimes.spool import Spool

ROWS = 1024
"""Rows of outputs from which losses are told apart well enough."""
_FEWEST = 2  # samples
_POSITIONS = 128  # of the logits of a sample that are compared: a row can take 200 kB
_HELD = 4  # share of `memory.held_bytes()` that outputs of the reference may take

Outputs = Mapping[str, NDArray[Any]]


@dataclass(slots=True)
class OutputLoss:
    """Measures candidates against a reference, which is run once.

    Memory: the outputs of the reference, of logits some rows, up to a share of `memory.held_bytes()`, the rest in a
    temporary file; one session at a time.

    Attributes:
        reference: the float model.
        samples: what models are compared on; as many from the front as have enough rows.
        threads: CPU threads.
    """

    reference: Runnable
    samples: Sequence[Sample]
    threads: int
    used: int = field(init=False, default=0)
    _setup: ComparisonSetup = field(init=False)
    _tokens: TokenOutput | None = field(init=False)
    _fed: list[Feed] = field(init=False, default_factory=list)
    _wanted: Spool = field(init=False, default_factory=lambda: Spool(memory.held_bytes() // _HELD))
    _names: list[tuple[str, ...]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        first = self.samples[0].feed
        self._setup = comparison_setup(self.reference, first)
        self._tokens = token_output(parsed(self._setup.reference))
        runner = CandidateRunner(ComparisonSetup(self._setup.reference), self._setup.reference, threads=self.threads)
        count = _FEWEST
        while len(self._fed) < min(count, len(self.samples)):
            start = len(self._fed)
            feeds = [sample.feed for sample in self.samples[start:count]]
            for feed, outputs in zip(feeds, runner.run_all(feeds, 1), strict=True):
                self._fed.append(self._setup.feed(feed, outputs))
                kept = self._kept(feed, outputs)
                self._names.append(tuple(kept))
                for name, values in kept.items():
                    self._wanted.put((start, name), values)
                start += 1
                rows = max((_rows(v) for v in outputs.values() if v.dtype.kind == "f"), default=1)
                count = max(count, -(-ROWS // rows))
        self.used = len(self._fed)

    @property
    def in_nats(self) -> bool:
        """Whether losses are divergences of tokens; else shares of the outputs' energy."""
        return self._tokens is not None

    def of(self, candidate: Runnable) -> float:
        """The loss of a candidate; infinity where its outputs are no numbers. Raises ModelError if it does not run."""
        runner = CandidateRunner(self._setup, candidate, threads=self.threads)
        nats = rows = 0.0
        sums = []
        for number, got in enumerate(runner.run_all(self._fed, 1)):
            wanted = {name: self._wanted.get((number, name)) for name in self._names[number]}
            if self._tokens is not None:
                # The rows that were kept of the reference, of the candidate.
                one, count = self._divergence(wanted[self._tokens.logits], self._kept(self._fed[number], got))
                nats, rows = nats + one, rows + count
            else:
                sums.append(sums_of(wanted, got, self._setup.compared(wanted, got)))
        if self._tokens is not None:
            return _finite(nats / max(rows, 1.0))
        shares = noise_shares(joined(sums))
        return _finite(float(np.mean(shares)) if len(shares) else 0.0)

    def close(self) -> None:
        """Let go of the outputs of the reference."""
        self._wanted.close()

    def _kept(self, feed: Feed, outputs: Outputs) -> Outputs:
        """What is kept of the outputs of a sample: of a language model some rows of the logits, else everything."""
        if self._tokens is None:
            return outputs
        logits = outputs[self._tokens.logits]
        flat = logits.reshape(-1, logits.shape[-1])
        seen = kept_positions(feed, self._tokens)
        count = logits.shape[1] if logits.ndim == 3 else 1
        at = np.flatnonzero(seen[:, -count:]) if seen.shape[0] * count <= len(flat) else np.arange(len(flat))
        at = at[:: -(-len(at) // _POSITIONS) or 1]
        return {self._tokens.logits: flat[at].copy()}

    def _divergence(self, wanted: NDArray[Any], outputs: Outputs) -> tuple[float, int]:
        """Sum of the divergences of the rows, and their number."""
        assert self._tokens is not None
        got, total = outputs[self._tokens.logits], 0.0
        for part in row_blocks(len(wanted), wanted.shape[-1]):
            total += float(divergences(log_softmax(wanted[part]), log_softmax(got[part])).sum())
        return total, len(wanted)


def _rows(values: NDArray[Any]) -> int:
    """Rows of an output: its positions, or one per entry of the batch."""
    return max(int(np.prod(values.shape[:-1])) if values.ndim > 1 else 1, 1)


def _finite(value: float) -> float:
    return max(value, 0.0) if np.isfinite(value) else float("inf")
