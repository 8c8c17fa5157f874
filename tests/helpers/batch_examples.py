"""Small models, a manifest for them, and the artifacts of a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from handmade import HANDMADE

from onnxshot.batch.store import ROW
from onnxshot.delivery.record import SUFFIX

REPORTS = (ROW, "report.json")


def two_models(folder: Path) -> Path:
    """Two small models with samples, and a manifest of four cells, in that folder."""
    case = HANDMADE["resnet_block"]()
    np.savez(folder / "calib.npz", x=np.stack([f["x"] for f in case.feeds]))
    for name, factor in (("one", 1.0), ("two", 1.25)):
        for w in case.model.graph.initializer:
            if w.data_type == onnx.TensorProto.FLOAT:
                w.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(w) * np.float32(factor), w.name))
        onnx.save(case.model, str(folder / f"{name}.onnx"))
    manifest(folder)
    return folder


def manifest(folder: Path, **changes: Any) -> Path:
    values = {"models": ["one.onnx", "two.onnx"], "targets": ["ort", "tensorrt"], "output": "out"}
    values["defaults"] = {"calib": "calib.npz", "emit": "onnx", "effort": "fast"}
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def artifacts(output: Path) -> dict[str, bytes]:
    """All files of results by their place, without those that hold timings, or where samples lay."""
    files = (p for p in output.glob("*/*/*") if p.name not in REPORTS and not p.name.endswith(SUFFIX))
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in files}
