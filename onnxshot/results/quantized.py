"""The result of `quantize`: the model, its plan and its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxshot.calibration.statistics_file import Statistics
from onnxshot.delivery import artifacts
from onnxshot.delivery.input_files import of_model
from onnxshot.delivery.output_files import OUTPUT, data_suffix, of_result
from onnxshot.delivery.overwrite_checks import foreign_artifact
from onnxshot.delivery.write_results import Made
from onnxshot.files.conflicts import Files, Write
from onnxshot.files.links import follow_link
from onnxshot.graph.save import draft
from onnxshot.planning.plan import Plan
from onnxshot.planning.plan_tables import plan_tables
from onnxshot.recipes.vocabulary import FormatName
from onnxshot.report.html.notebook import folded, report_card, report_line
from onnxshot.report.report import Report
from onnxshot.runtimes.base import EmitOptions
from onnxshot.settings import Settings


@dataclass(slots=True, repr=False)
class Result(Made):
    """A quantized model.

    Attributes:
        model: The model.
        plan: What was quantized, and why the rest was not.
        report: Accuracy, latency and size.
        statistics: The statistics that its scales were computed from; None if nothing was calibrated.

    Example:
        >>> result = onnxshot.quantize("model.onnx", "samples/")
        >>> result.report.sqnr_db, result.model_proto, result.session()
    """

    plan: Plan
    report: Report
    statistics: Statistics | None = None

    def __repr__(self) -> str:
        """One line: the file and its figures."""
        return report_line("Result", self.report.to_dict())

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        return report_card(self.report.to_dict(), folded("what was quantized", plan_tables(self.plan)))

    def emit(self, to: FormatName, folder: str | Path, options: EmitOptions | None = None) -> Path:
        """Write the model in a format, without running it.

        Args:
            to: 'onnx', 'openvino' or 'tensorrt'.
            folder: Folder to write to; the file has the stem of the input and the precision as its name.
            options: How artifacts other than .onnx are built.

        Returns:
            The path of the file.

        Raises:
            TargetError: There is no such format, or its runtime is not installed.
            UsageError: A file of another origin would be replaced.
        """
        stem = self.model.path.stem if self.model.path is not None else "model"
        final = follow_link(Path(folder) / f"{stem}.{self.report.recipe['precision']}.onnx")
        writes = of_result(final, (to,), data=data_suffix(self.model), recorded=False)
        Files(of_model(self.model)).writing(Write(final, OUTPUT, foreign_artifact), *writes).check()
        if to == artifacts.ONNX:
            return self.save(final)
        artifacts.runtime_of(to).check()
        how, place = options or EmitOptions(), artifacts.artifact_path(final, to)
        with (
            draft(self.model, final) as written,
            artifacts.make_artifact(written.path, to, place, how, None, Settings()) as (other, _),
        ):
            return other.publish()
