"""Examples at the end of each command's help. Tests parse and run them, so they can be copied."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "onnxshot": (
        ("What would be quantized, and why not the rest", "onnxshot inspect net.onnx"),
        ("To int8, with pictures as samples", "onnxshot quantize net.onnx --calib pictures/ --preset imagenet"),
        ("The same in a browser", "onnxshot ui"),
    ),
    "quantize": (
        ("Pictures of a folder, prepared as for ImageNet",
         "onnxshot quantize net.onnx --calib pictures/ --preset imagenet"),
        ("At least 30 dB, and a page on the result",
         "onnxshot quantize net.onnx --calib data/ --min-sqnr 30 --report net.html"),
        ("A language model in 4 bits", "onnxshot quantize llm/ --bits 4 --calib texts.txt -o llm-int4"),
        ("Without data, for size", "onnxshot quantize net.onnx --mode weights"),
        ("For two runtimes", "onnxshot quantize net.onnx --calib data/ --target ort,openvino"),
    ),
    "prune": (
        ("Half of the weights become zero", "onnxshot prune net.onnx --sparsity 0.5 --calib data/"),
        ("Two of every four, for GPUs", "onnxshot prune net.onnx --pattern 2:4 --calib data/"),
        ("Channels, for speed everywhere",
         "onnxshot prune net.onnx --pattern channels --target-flops 0.7 --calib data/"),
    ),
    "compress": (
        ("Zeros and int8", "onnxshot compress net.onnx --optim-level 0.5 --calib data/"),
        ("The stages of a file, and a folder to deploy",
         "onnxshot compress net.onnx --recipe stages.yaml --calib data/ --bundle out"),
    ),
    "batch": (
        ("Four at once", "onnxshot batch manifest.yaml --jobs 4"),
        ("Another value for an argument of the file", "onnxshot batch manifest.yaml --set effort=best"),
    ),
    "inspect": (
        ("For the default runtime", "onnxshot inspect net.onnx"),
        ("For another, and for programs", "onnxshot inspect net.onnx --target openvino --json"),
    ),
    "sensitivity": (
        ("The nodes that cost most accuracy", "onnxshot sensitivity net.onnx --calib data/"),
        ("Also what each gains in float", "onnxshot sensitivity net.onnx --calib data/ --gains"),
    ),
    "compare": (
        ("A model of any tool with its float model",
         "onnxshot compare net.onnx net.int8.onnx --calib data/ --report page.html"),
    ),
    "diff": (
        ("What an edit has changed", "onnxshot diff net.onnx net.int8.onnx"),
        ("And what the outputs say", "onnxshot diff net.onnx net.int8.onnx --calib data/"),
    ),
    "bench": (
        ("Against the float model", "onnxshot bench net.onnx net.int8.onnx"),
        ("On four threads, with real inputs", "onnxshot bench net.onnx net.int8.onnx --threads 4 --calib data/"),
    ),
    "emit": (
        ("For OpenVINO", "onnxshot emit net.int8.onnx --to openvino -o net.xml"),
        ("An engine for one GPU", "onnxshot emit net.int8.onnx --to tensorrt --hardware sm89 -o net.engine"),
        ("A plain .onnx of batch 1", "onnxshot emit net.onnx --batch 1"),
    ),
    "verify": (("Before it is deployed", "onnxshot verify out"),),
    "calibrate": (
        ("Once, for many runs of quantize --stats", "onnxshot calibrate net.onnx --calib data/ -o stats.npz"),
        ("Of several machines", "onnxshot calibrate part1.npz part2.npz --merge -o all.npz"),
    ),
    "replay": (("The run that made net.int8.onnx", "onnxshot replay net.onnx net.int8.recipe.yaml --calib data/"),),
    "doctor": (("What is here", "onnxshot doctor"),),
    "ui": (
        ("In a browser", "onnxshot ui"),
        ("On a machine without one", "onnxshot ui --no-open --port 8000"),
    ),
    "cache": (("Where it is, and how large", "onnxshot cache show"),),
}  # fmt: skip
"""Command -> (what it is for, the command line)."""

PAGES = {
    "onnxshot": "docs/command-line.md",
    "quantize": "docs/quantizing.md, docs/calibration.md, docs/targets.md",
    "prune": "docs/pruning.md",
    "compress": "docs/pruning.md, docs/recipes.md",
    "batch": "docs/batch.md",
    "inspect": "docs/quantizing.md",
    "sensitivity": "docs/quantizing.md",
    "compare": "docs/reports.md",
    "diff": "docs/reports.md",
    "bench": "docs/deploying.md",
    "emit": "docs/targets.md, docs/deploying.md",
    "verify": "docs/deploying.md",
    "calibrate": "docs/calibration.md",
    "replay": "docs/recipes.md",
    "doctor": "docs/deploying.md",
    "ui": "docs/ui.md",
}
"""Command -> the pages with the details."""
