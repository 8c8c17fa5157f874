"""`emit`: a model in the format of a runtime, without compressing it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot import emitting, proof
from onnxshot.calibrating import open_calib
from onnxshot.calibration.preprocess import Preset
from onnxshot.graph import edit
from onnxshot.graph.load import load_model
from onnxshot.graph.save import Draft, refuse_sources
from onnxshot.output import deliver, input_bytes, source_name
from onnxshot.passes.normalize import normalize
from onnxshot.passes.store_half import StoreHalf
from onnxshot.report import Artifact, Report
from onnxshot.settings import Settings
from onnxshot.targets.ort import ORT
from onnxshot.targets.runtime import EmitOptions


def emit(
    model: str | Path | ModelProto,
    *,
    to: str | Sequence[str] = emitting.ONNX,
    output: str | Path,
    calib: Any = None,
    preset: str | Preset | None = None,
    options: EmitOptions | None = None,
    settings: Settings | None = None,
) -> Report:
    """Normalize a model without compressing it, and write it in one format or several, each with the output's stem.

    Args:
        model: path of an .onnx file, or a ModelProto.
        to: onnx, openvino.
        output: where to write.
        calib: samples that artifacts are held against the model on, as `quantize` takes them; random ones by default.
        preset: preprocessing of pictures.
        options: how artifacts other than .onnx are made.
        settings: how to run it.

    Raises:
        ModelError, CalibrationError, UsageError, TargetError: each says what was found and what to do.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    formats = emitting.formats_of((to,) if isinstance(to, str) else to, None, ORT)
    place, loaded = emitting.place_of(Path(output), emitting.ONNX), load_model(model)
    if emitting.ONNX in formats:
        refuse_sources(loaded, place)  # before the work, not after it
    report = Report(source_name(model), {"emit": list(formats)}, input_bytes=input_bytes(model, loaded))
    normalize(loaded)
    StoreHalf().run(loaded)
    edit.toposort(loaded)
    report.notes += loaded.notes
    with contextlib.ExitStack() as stack:
        judged: emitting.Judged | None = None
        if settings.verify and formats != (emitting.ONNX,):
            proto = loaded.to_proto()
            data = open_calib(calib, loaded, preset, settings) if calib is not None else None
            data = stack.enter_context(data) if data is not None else proof.random_data(proto, loaded)
            judged = emitting.Judged(proto, data) if data is not None else None

        def others(written: Path) -> Iterator[AbstractContextManager[tuple[Draft, Artifact]]]:
            return emitting.artifacts(written, formats, place, options or EmitOptions(), judged, settings)

        def prove(written: Draft) -> None:
            proof.loads(written.path, model)

        deliver(loaded, place, ORT.name, report, prove, others, keep=emitting.ONNX in formats)
    report.seconds = time.perf_counter() - started
    return report
