"""Plan a calibration pass: which tensors it observes, and the key of its statistics in the cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.statistics_file import Statistics
from onnxshot.calibration.stats import TensorStats
from onnxshot.execution import statistics_cache
from onnxshot.graph import Model
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.plan import STATIC, Plan
from onnxshot.planning.smoothable import readers_of
from onnxshot.recipes.recipe import Recipe
from onnxshot.settings import Settings
from onnxshot.targets import TARGETS
from onnxshot.wording import counted


@dataclass(frozen=True)
class CalibrationPass:
    """A pass over calibration samples, before it is made.

    Attributes:
        model: The normalized model.
        names: Tensors to observe.
        channels: Those that are also observed per channel.
        samples: The samples to choose from.
        settle: Whether it may stop early.
    """

    model: Model
    names: list[str]
    channels: set[str]
    samples: Dataset
    settle: bool

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 of the model, in hex."""
        return statistics_cache.model_hash(self.model)

    def key(self, digests: Sequence[str], recipe: Recipe, device: str) -> str:
        """Key of its statistics in a cache. `digests`: digests of the samples."""
        sizes = [str(sorted(recipe.shapes.items()))] if recipe.shapes else []  # pictures are resized to them
        # The names count: the tensors observed decide when the ranges have settled, and so which samples are run.
        watched = str((sorted(self.names), sorted(self.channels)))
        return statistics_cache.key(
            self.model_hash, self.samples.preset_hash, device, str(self.settle), watched, *sizes, *digests
        )  # fmt: skip

    def statistics(
        self, stats: Mapping[str, TensorStats], used: Sequence[int], digests: Sequence[str], notes: Sequence[str]
    ) -> Statistics:
        """The statistics as they are stored.

        Args:
            stats: Statistics by tensor.
            used: Indices of the samples that were run.
            digests: Digests of all samples.
            notes: Remarks of the pass.
        """
        of = tuple(sorted({digests[i] for i in used}))
        told = (*notes, *_duplicates(self.samples, digests))
        return Statistics(stats, self.model_hash, self.samples.preset_hash, of, len(self.samples), told)


def calibration_pass(
    model: Model,
    plan: Plan,
    recipe: Recipe,
    samples: Dataset,
    settings: Settings,
    *,
    settle: bool = True,
    known: Mapping[str, TensorStats] | None = None,
) -> CalibrationPass:
    """The pass that a plan needs; `settle` and `known` as in `from_data`."""
    names, by_channel = _watched(model, plan, recipe)
    settle = settle and settings.samples == "auto" and not samples.random
    return CalibrationPass(model, missing_in(known or {}, names, by_channel), by_channel, samples, settle)


def missing_in(tensors: Mapping[str, TensorStats], names: Sequence[str], by_channel: Collection[str]) -> list[str]:
    """The tensors that have no statistics, or none per channel although they are needed."""
    return [n for n in names if n not in tensors or (n in by_channel and not tensors[n].channel_absmax)]


def _watched(model: Model, plan: Plan, recipe: Recipe) -> tuple[list[str], set[str]]:
    """Tensors to observe, and those to observe per channel: all that any target or exclusion could need.

    The statistics of a model are then the same for every target, and one calibration is enough.
    """
    asked = [Recipe(target=target.name, include=recipe.include) for target in TARGETS.values()]
    plans = [*(make_plan(model, TARGETS[one.target], one) for one in asked), plan]
    names = list(dict.fromkeys(name for p in plans for name in p.observe))
    by_channel = {name for p in plans for name in p.watched}
    by_channel.update(t.name for p in plans for t in readers_of(model, p, STATIC))  # SmoothQuant may apply
    return names, by_channel


def _duplicates(data: Dataset, digests: Sequence[str]) -> list[str]:
    """A note on samples that occur more than once; empty if there are none."""
    first: dict[str, int] = {}
    twice = [(first[d], i) for i, d in enumerate(digests) if first.setdefault(d, i) != i]
    if not twice:
        return []
    some = ", ".join(f"{data.name(b)!r} equals {data.name(a)!r}" for a, b in twice[:3])
    what = counted(len(twice), "calibration sample")
    are = "is a copy of another" if len(twice) == 1 else "are copies of others"
    return [f"{what} {are}: {some}" + (" and more" if len(twice) > 3 else "")]
