"""A session of ONNX Runtime for the user, of a model in memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshot.errors import ModelError
from onnxshot.graph.model import MOST_BYTES, Model
from onnxshot.graph.save import write
from onnxshot.runtimes.ort_session import one_line, runtime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

Providers = Sequence[str | tuple[str, Mapping[str, Any]]]


def session_of(
    model: Model, sess_options: SessionOptions | None, providers: Providers, options: Mapping[str, Any]
) -> InferenceSession:
    """Return a session of a model. A model over 2 GiB lies in a temporary folder for as long as the session lives.

    Raises:
        ModelError: ONNX Runtime does not load the model.
        TargetError: ONNX Runtime is not installed.
    """
    given = {"sess_options": sess_options, "providers": list(providers), **options}
    try:
        if model.weight_bytes() <= MOST_BYTES:
            return runtime().InferenceSession(model.to_proto().SerializeToString(), **given)
        folder = tempfile.TemporaryDirectory(prefix="onnxshot-session-")
        path = Path(folder.name) / "model.onnx"
        write(model, path, external=True)
        made = runtime().InferenceSession(str(path), **given)
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise ModelError(f"the model does not load in ONNX Runtime: {one_line(e)}") from e
    weakref.finalize(made, folder.cleanup)
    return made
