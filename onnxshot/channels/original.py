"""The model and the samples that channel removal starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxshot.calibration.checks import NamedFeed
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sampling import spread
from onnxshot.channels.eligible import Eligible, eligible_of
from onnxshot.channels.groups import Groups, groups_of
from onnxshot.channels.weight_scores import batchnorm_scales
from onnxshot.execution.statistics_cache import model_hash
from onnxshot.files.kept_arrays import KeptArrays
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import Sizes
from onnxshot.graph.shape_inference import refuse_giants
from onnxshot.maths.channel_removal import Floats
from onnxshot.passes.normalize import normalize
from onnxshot.passes.unshare import Unshare
from onnxshot.passes.widen_precision16 import WidenPrecision16
from onnxshot.recipes.stages import ShrinkStage
from onnxshot.rewriting.prepare import fold_constants, half_notes, widen
from onnxshot.runtimes.ort_runtime import Feed
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.runtimes.parallel import in_order

_MOST_SAMPLES = 256
_MOST_CHECKS, _LEAST_CHECKS = 32, 4  # samples for output error: an eighth of all, within these bounds


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """The model before removal.

    Attributes:
        source: The model as it was given.
        model: The same, normalized, in float32, with shared weights duplicated.
        source_hash: `model_hash` of the given model.
        widened: Which tensors were computed in 16 bits.
        scales: |gamma| of the BatchNormalizations by the name of their input; only for importance 'batchnorm'.
        notes: What the user should know.
    """

    source: str | Path | ModelProto
    model: Model
    source_hash: str
    widened: WidenPrecision16
    scales: Mapping[str, Floats]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Samples of a run.

    Attributes:
        fit: Samples that weights are fitted on.
        checks: Samples that output error is measured on.
        given: Number of samples that the run was given; 0 if there are none.
        used: Number of these that were read.
    """

    fit: Sequence[Feed] = ()
    checks: Sequence[Feed] = ()
    given: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """The channels of a model.

    Attributes:
        sizes: Shapes of its tensors.
        groups: All dependency groups.
        eligible: The groups and branches that may be removed.
    """

    sizes: Sizes
    groups: Groups
    eligible: Eligible


def original_of(source: str | Path | ModelProto, asked: ShrinkStage) -> Original:
    """Load a model and normalize it.

    Raises:
        ModelError: The model cannot be read, or a tensor is too large for this machine.
    """
    model = load_model(source)
    source_hash = model_hash(model)
    widened = widen(model)
    scales: dict[str, Floats] = {}
    if asked.importance == "batchnorm":
        fold_constants(model)
        scales = batchnorm_scales(model)
    normalize(model)
    Unshare().run(model)
    # The output of a layer that absorbed its BatchNormalization has the name of the BatchNormalization's output.
    scales = {model.renamed.get(name, name): gamma for name, gamma in scales.items()}
    refuse_giants(model)
    return Original(source, model, source_hash, widened, scales, tuple(half_notes(widened.computed, kept=True)))


def samples_of(data: Dataset, threads: int) -> Samples:
    """Read up to 256 samples, spread over the data, and set some aside to measure output error on.

    They wait in memory, or mapped from a temporary file beyond `memory.held_bytes()`.
    """
    chosen = spread(len(data))[:_MOST_SAMPLES]
    with KeptArrays() as waiting:
        feeds: list[Feed] = [_kept(s.feed, waiting) for s in in_order(data.__getitem__, chosen, threads)]
    checks = min(_MOST_CHECKS, max(_LEAST_CHECKS, len(feeds) // 8))
    return Samples(feeds[checks:] or feeds, feeds[:checks], len(data), len(feeds))


def _kept(feed: Feed, waiting: KeptArrays) -> Feed:
    """The sample with arrays that may be mapped from a file; those of strings and objects stay in memory."""
    found = {name: value if value.dtype.kind in "SUO" else waiting.add(value) for name, value in feed.items()}
    return NamedFeed(found, feed.sample) if isinstance(feed, NamedFeed) else found


def sizes_of(model: Model, samples: Samples, threads: int) -> Sizes:
    """Shapes of a model's tensors, on the first sample if there is one."""
    return sizes_on(model, samples.fit[0] if samples.fit else None, threads=threads)


def structure_of(model: Model, sizes: Sizes, asked: ShrinkStage, *, sampled: bool) -> Structure:
    """Find the groups of a model and what of them may be removed. Raises UsageError as `eligible_of` does."""
    groups = groups_of(model, sizes.shapes)
    return Structure(sizes, groups, eligible_of(model, groups, sizes.shapes, asked, sampled=sampled))
