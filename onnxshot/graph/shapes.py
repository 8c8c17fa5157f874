"""Shape inference and opset upgrades, both on a skeleton without weights. A failed inference is a note, never fatal."""

from __future__ import annotations

import onnx
from onnx import version_converter

from onnxshot.errors import ModelError
from onnxshot.graph.load import first_line
from onnxshot.graph.model import Model


def infer(model: Model) -> None:
    """Fill in the types and shapes of the top-level graph's tensors, as far as ONNX can tell them."""
    proto, _ = model.skeleton()
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        model.notes.append(f"shape inference failed, went on without: {first_line(e)}")
        return
    infos = model.graph.value_infos
    for info in inferred.graph.value_info:
        if info.name not in infos or not infos[info.name].type.tensor_type.HasField("shape"):
            infos[info.name] = info


def raise_opset(model: Model, version: int) -> None:
    """Raise the default opset to `version` through ONNX's version converter; lower or equal is left as it is.

    Raises ModelError where the converter cannot, or where its result is not valid.
    """
    if model.opset >= version:
        return
    proto, lifted = model.skeleton()
    if proto.ir_version < 4:
        proto.ir_version = 4  # below 4 every initializer must be an input
    try:
        converted = version_converter.convert_version(proto, version)
        onnx.checker.check_model(converted)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as e:
        raise ModelError(
            f"opset {model.opset} could not be raised to {version}: {first_line(e)}",
            f"export the model again with opset {version} or newer, or use a scheme that needs less (--per-tensor)",
        ) from e
    model.rebuild(converted, lifted)
