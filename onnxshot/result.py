"""What came of quantizing: the model, its plan and the proof."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxshot import emitting
from onnxshot.calibration.statsfile import Statistics
from onnxshot.files.given import of_model
from onnxshot.files.ledger import Files, Write
from onnxshot.files.marks import foreign_artifact
from onnxshot.files.results import OUTPUT, is_external, of_result
from onnxshot.graph.save import draft
from onnxshot.output import Made
from onnxshot.planning.plan import Plan
from onnxshot.report import Report
from onnxshot.settings import Settings
from onnxshot.targets.runtime import EmitOptions
from onnxshot.writing.links import led


@dataclass(slots=True)
class Result(Made):
    """A quantized model and the proof. Nothing is printed and, without an output path, nothing is kept on disk.

    statistics: what its scales were taken from; None where nothing was calibrated.
    """

    plan: Plan
    report: Report
    statistics: Statistics | None = None

    def emit(self, to: str, folder: str | Path, options: EmitOptions | None = None) -> Path:
        """Write the model into `folder` in a format; nothing is run.

        Raises TargetError where there is none such, UsageError where a file is there that onnxshot has not written.
        """
        stem = self.model.path.stem if self.model.path is not None else "model"
        final = led(Path(folder) / f"{stem}.{self.report.recipe['precision']}.onnx")
        writes = of_result(final, (to,), external=is_external(self.model), recorded=False)
        Files(of_model(self.model)).writing(Write(final, OUTPUT, foreign_artifact), *writes).check()
        if to == emitting.ONNX:
            return self.save(final)
        emitting.runtime_of(to).check()
        how, place = options or EmitOptions(), emitting.place_of(final, to)
        with (
            draft(self.model, final) as written,
            emitting.made(written.path, to, place, how, None, Settings()) as (other, _),
        ):
            return other.publish()
