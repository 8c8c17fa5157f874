"""`diff`: the differences between two files of a model, layer by layer, and their effect on the outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.delivery.write_results import input_bytes
from onnxshot.difference.compare_layers import LayerChange, PairChange, layer_change, matched, pair_changes
from onnxshot.difference.read_layers import read_layers
from onnxshot.difference.rescaled_channels import factors_between, factors_of
from onnxshot.execution.statistics_source import open_calib
from onnxshot.graph import Node
from onnxshot.graph.load import load_model
from onnxshot.precision16.bfloat16_emulation import runnable_on_cpu
from onnxshot.report.html import figures
from onnxshot.report.html.notebook import Rows, card, folded, sentences, table
from onnxshot.report.values import rounded
from onnxshot.results.model_source import ModelSource, model_files, name_of_source
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.settings import Settings, budgeted
from onnxshot.verification.compare_models import compare
from onnxshot.verification.compared_files import refuse_other_inputs
from onnxshot.verification.io_contract import contract, difference
from onnxshot.verification.output_errors import OutputRow
from onnxshot.verification.tensor_errors import TensorRow
from onnxshot.wording import counted

_SHOWN = 20  # layers in a card
_PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Only:
    """A node that only one of the files has."""

    node: str
    op: str


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences between two files of a model.

    Attributes:
        before, after: Paths of the files.
        bytes_before, bytes_after: Their sizes in bytes, external data included.
        layers: Layers that differ, the weight with the lowest SQNR first.
        unchanged: Number of layers that do not differ.
        changed: Kind of change ('type', 'scale', 'mask', 'shape', 'values') -> number of layers.
        activations: Activations that are quantized in both files, but differently.
        quantized_before, quantized_after: Number of quantized activations in each file.
        only_before, only_after: Nodes of one file only, Q/DQ pairs aside.
        contract: The first difference of inputs or outputs; empty if there is none.
        notes: What the user should know.
        samples: Number of samples that both files were run on.
        sqnr_db: SQNR in dB of the outputs of the second file, relative to the first.
        agreement: Share 0..1 of equal top-1 classes; None if no output looks like class scores.
        outputs: The same for each output.
        worst: Tensors that both files have by name, the lowest SQNR first.
        tensor_samples: Number of samples that `worst` was measured on, from the first on.
    """

    before: str
    after: str
    bytes_before: int
    bytes_after: int
    layers: tuple[LayerChange, ...]
    unchanged: int
    changed: dict[str, int]
    activations: tuple[PairChange, ...]
    quantized_before: int
    quantized_after: int
    only_before: tuple[Only, ...]
    only_after: tuple[Only, ...]
    contract: str = ""
    notes: tuple[str, ...] = ()
    samples: int = 0
    sqnr_db: float | None = None
    agreement: float | None = None
    outputs: tuple[OutputRow, ...] = ()
    worst: tuple[TensorRow, ...] = ()
    tensor_samples: int = 0

    def __repr__(self) -> str:
        """One line: how many layers differ, and in what."""
        facts = [f"{name} {text}" for name, text in self._facts() if text]
        return f"Diff({', '.join([f'{len(self.layers)} layers differ', *facts])})"

    def _repr_html_(self) -> str:
        """A card with the layers that differ most, which notebooks show."""
        rows = [
            (row.node, row.op, ", ".join(row.changes), "" if row.sqnr_db is None else figures.decibels(row.sqnr_db))
            for row in self.layers[:_SHOWN]
        ]
        shown = table(Rows(("layer", "op", "differs in", "SQNR"), rows, frozenset({3})))
        notes = folded(counted(len(self.notes), "note"), sentences(self.notes))
        title = f"{Path(self.before).name} → {Path(self.after).name}: {counted(len(self.layers), 'layer')} of "
        return card(f"{title}{len(self.layers) + self.unchanged} differ", self._facts(), shown, notes)

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("size", " → ".join(figures.sizes(self.bytes_before, self.bytes_after))),
            *((kind, str(count)) for kind, count in self.changed.items()),
            ("SQNR", "" if self.sqnr_db is None else figures.decibels(self.sqnr_db)),
            ("agreement", figures.percent(self.agreement)),
            ("contract", self.contract),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under stable keys."""
        values: dict[str, Any] = rounded(asdict(self))
        return values


@checked
@budgeted
@one_blas_thread()
@blames_model
def diff(
    before: ModelSource,
    after: ModelSource,
    calib: Calib | None = None,
    *,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    settings: Settings | None = None,
) -> Diff:
    """Compare two files of a model: precision, scales, masks, shapes and values of its layers.

    Both files are converted to float form and normalized first. Files of other tools, other forms of the same
    quantization, and files before and after fusion can therefore be compared.

    Args:
        before: A model, as `quantize` takes it.
        after: Another, made from the same model.
        calib: Samples to run both files on, as `quantize` takes them. Without, nothing is run.
        preset: How samples become inputs.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        settings: Threads, samples.

    Returns:
        The differences; `to_dict` gives plain values.

    Raises:
        UsageError: The files are run, and the second has other inputs than the first.
        ModelError: A file is no model, or does not run.
        CalibrationError: The data does not fit the first file.

    Note:
        Memory: the weights of one layer of both models in float32, a few times; see `Settings.memory` for the rest.

    Example:
        >>> found = onnxshot.diff("model.onnx", "model.int8.onnx")
        >>> found.changed
    """
    calib = with_transform(calib, transform)
    with model_files(before, after) as (one, other):
        names = name_of_source(before), name_of_source(after)
        found = _difference(one, other, names, calib, preset, settings)
    return replace(found, before=names[0], after=names[1])


def _difference(
    before: Path,
    after: Path,
    names: tuple[str, str],
    calib: Calib,
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
    settings: Settings | None,
) -> Diff:
    """The differences of two files. names: of both, in messages."""
    one, other = read_layers(before), read_layers(after)
    pairs, only_before, only_after = matched(one.layers, other.layers)
    factors = factors_of(one, pairs)
    found_rows = (layer_change(a, b, factors.of_weight(a)) for a, b in pairs)
    rows = [row for row in found_rows if row is not None]
    rows.sort(key=lambda row: (row.sqnr_db is None, row.sqnr_db or 0.0))
    models = load_model(before), load_model(after)
    facts, ran = dict[str, Any](), tuple[str, ...]()
    if calib is not None:
        refuse_other_inputs(*models, names)
        settings = settings or Settings(samples="all")
        opened = open_calib(calib, models[0], preset, settings, also=models[1])
        with opened as data, runnable_on_cpu([before, after]) as (runs, notes):
            same = factors if not notes else factors_between(*runs)  # of the files that run
            found = compare(
                runs[0], runs[1], data, tensors=None, threads=settings.threads, scaled=same.tensors, form=same.form
            )
        ran = (*(() if data.random else data.notes), *notes)
        facts = {
            "samples": found.samples, "sqnr_db": found.sqnr_db, "agreement": found.agreement,
            "outputs": found.outputs, "worst": tuple(row for row in found.tensors if row.op not in _PAIR),
            "tensor_samples": found.tensor_samples,
        }  # fmt: skip
    return Diff(
        str(before), str(after), input_bytes(before, models[0]), input_bytes(after, models[1]),
        layers=tuple(rows),
        unchanged=len(pairs) - len(rows),
        changed=dict(Counter(change for row in rows for change in row.changes)),
        activations=pair_changes(one.pairs, other.pairs),
        quantized_before=len(one.pairs.activations),
        quantized_after=len(other.pairs.activations),
        only_before=_named(only_before),
        only_after=_named(only_after),
        contract=difference(contract(before), contract(after)),
        notes=(*one.notes, *other.notes, *factors.notes, *ran),
        **facts,
    )  # fmt: skip


def _named(nodes: list[Node]) -> tuple[Only, ...]:
    """Label and operator of each node."""
    return tuple(Only(node.label, node.op) for node in nodes)
