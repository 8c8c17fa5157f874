"""Time the forms of `product_forms.py` in the onnxruntime of this interpreter: `product_forms_worker.py JOB.json`.

Needs onnxruntime and numpy alone. The job: folder of FORM.onnx, float.onnx among them; forms, rows, inputs, seconds.
Prints one line of JSON: form -> rows -> CPU time of float over that of the form; null for a form that does not load.
"""

from __future__ import annotations

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # no onnxshot here

import measured
import numpy as np


def main() -> None:
    with open(sys.argv[1]) as file:  # noqa: PTH123
        job = json.load(file)
    base = measured.session(f"{job['folder']}/float.onnx")
    found: dict = {}
    for form in job["forms"]:
        try:
            loaded = measured.session(f"{job['folder']}/{form}.onnx")
        except Exception:  # ONNX Runtime's errors share no base class
            found[form] = None
            continue
        found[form] = {}
        for rows in job["rows"]:
            feed = {"x0": np.random.default_rng(rows).standard_normal((rows, job["inputs"]), np.float32)}
            both = {"float": base, "form": loaded}
            ratio = measured.in_turns(both, [feed], job["seconds"], time.process_time_ns)["form"][0]
            found[form][rows] = round(ratio, 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
