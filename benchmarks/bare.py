"""What nobody can be faster than: read the samples and run float inference on them, one by one, in 40 lines.

`python bare.py MODEL CALIB PRESET.json SAMPLES [asleep]`; knows nothing of onnxshot. The preset is {} for .npz samples.
Threads spin while they wait, as ONNX Runtime has it by default; with `asleep` they sleep, as those of onnxshot do.
"""

import json
import sys
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def picture(path, preset):
    image = Image.open(path).convert("RGB")
    if "height" in preset:
        width = round(image.width * preset["height"] / image.height)
        image = image.resize((min(max(width, 1), preset["max_width"]), preset["height"]), Image.Resampling.BILINEAR)
    elif image.size != tuple(preset["size"][::-1]):
        image = image.resize(preset["size"][::-1], Image.Resampling.BILINEAR)
    x = np.asarray(image, np.float32) / preset["scale"]
    if preset["channels"] == "BGR":
        x = x[:, :, ::-1]
    x = ((x - np.float32(preset["mean"])) / np.float32(preset["std"])).transpose(2, 0, 1)
    missing = max(preset.get("min_width", 0) - x.shape[2], 0)
    return np.ascontiguousarray(np.pad(x, ((0, 0), (0, 0), (0, missing))))[None]


def main():
    model, calib, preset, count = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()), sys.argv[4]
    options = onnxruntime.SessionOptions()
    if sys.argv[5:] == ["asleep"]:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [arg.name for arg in session.get_inputs()]
    for path in islice(cycle(sorted(p for p in calib.rglob("*") if p.is_file())), int(count)):
        feed = {names[0]: picture(path, preset)} if preset else dict(np.load(path))
        session.run(None, feed)


main()
