"""Access to fixtures/: paths, held-out data, and the accuracy of models made from them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
FIXTURES = ROOT / "fixtures"
Feed = dict[str, NDArray[Any]]

IOU = 0.5  # a box that overlaps an object this much may claim it
CONFIDENT = 0.25  # a score below this is no detection: a head whose scores all became 0 finds nothing


def facts() -> dict[str, dict[str, Any]]:
    """fixtures/models.json: name -> file, calib, preset, heldout, metric, accuracy, params."""
    found: dict[str, dict[str, Any]] = json.loads((FIXTURES / "models.json").read_text())
    return found


def fixture(name: str) -> Path:
    """Path of a fixture: a model of models.json by name ('digits_resnet'), else a path below fixtures/."""
    known = facts()
    return FIXTURES / (known[name]["file"] if name in known else name)


def heldout(name: str) -> tuple[list[Feed], NDArray[Any]]:
    """Held-out samples of a model as feeds of batch 1, and labels int64 [N], or float32 [K, 6] for the detector.

    A detector's label row is (sample, class, cx, cy, w, h) in pixels.
    """
    data = np.load(FIXTURES / facts()[name]["heldout"])
    if "offsets" in data:
        return _texts(data["ids"], data["offsets"]), data["labels"]
    mean, std = data["mean"], data["std"]
    images = (data["images"][:, None, None].astype(np.float32) / np.float32(255) - mean) / std
    return [{"image": image} for image in images.astype(np.float32)], data["labels"]


def _texts(ids: NDArray[np.uint16], offsets: NDArray[np.int64]) -> list[Feed]:
    """Windows from one flat array: input_ids and attention_mask int64 [1, T]."""
    feeds = []
    for start, stop in pairwise(offsets):
        tokens = ids[start:stop].astype(np.int64)[None]
        feeds.append({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
    return feeds


def session(model: Path | str | bytes) -> Any:
    """An onnxruntime session on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def accuracy(name: str, model: Path | str | bytes | None = None) -> float:
    """Share in 0..1 that a model gets right of the held-out data of fixture `name`; by default the fixture itself."""
    run = session(fixture(name) if model is None else model)
    feeds, labels = heldout(name)
    outputs = [run.run(None, feed)[0][0] for feed in feeds]
    if labels.ndim == 1:
        return float(np.mean([output.argmax() == label for output, label in zip(outputs, labels, strict=True)]))
    return float(np.mean([_found(outputs[int(row[0])], int(row[1]), row[2:]) for row in labels]))


def _found(output: NDArray[np.float32], label: int, box: NDArray[np.float32]) -> bool:
    """Whether the most confident cell that overlaps this object says its class. output [cells, 4 + classes]."""
    centre, size = output[:, :2], output[:, 2:4]
    corner = np.minimum(centre + size / 2, box[:2] + box[2:] / 2) - np.maximum(centre - size / 2, box[:2] - box[2:] / 2)
    both = np.clip(corner, 0, None).prod(1)
    overlap = both / (size.prod(1) + box[2:].prod() - both)
    scores = np.where(overlap[:, None] >= IOU, output[:, 4:], 0)
    return bool(scores.max() >= CONFIDENT and scores.max(0).argmax() == label)
