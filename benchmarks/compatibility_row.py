"""One row of the compatibility table, stage by stage, for `compatibility.py`: `compatibility_row.py JOB.json`.

Each stage's values are added to the journal as a line of JSON as soon as they are known: a stage that ends the process
costs no other stage its values. What is told of a file is measured from the file, never taken from a report.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measured
import numpy as np
import onnx
from counting import graphs, is_int8, kernels, macs

KEPT = 0.85  # of the work, where channels are cut


@dataclass
class Row:
    """The folder of a model, where its files go, and how."""

    folder: Path
    out: Path
    effort: str
    seconds: float
    threads: int

    def __post_init__(self) -> None:
        self.model = self.folder / "model.onnx"
        self.calib, self.feeds = measured.samples(self.folder)
        self._wanted: list[list[Any]] | None = None

    def options(self) -> dict[str, Any]:
        import onnxshot

        return {"settings": onnxshot.Settings(use_cache=False, bench_seconds=0.05, threads=self.threads)}

    def quantize(self, name: str, **options: Any) -> Path:
        import onnxshot

        calib = str(self.folder / "calib")
        path = self.out / f"{name}.onnx"
        onnxshot.quantize(self.model, calib, output=path, effort=self.effort, **options, **self.options())
        return path

    def judged(self, path: Path) -> dict[str, Any]:
        """Size and distance of a file from the given one, on samples that nothing was learned from."""
        names = measured.tensors(given := measured.session(self.model))
        if self._wanted is None:
            self._wanted = [measured.run(given, feed, names) for feed in self.feeds]
        made = measured.session(path)
        got = [measured.run(made, feed, names) for feed in self.feeds]
        return {"bytes": size(path), **measured.distance(self._wanted, got)}

    def work(self, path: Path, *, optimize: bool, folded: bool = False) -> Counter[str]:
        """Multiply-accumulates of one sample, by the kernel that does them; folded: without products of constants."""
        found: Counter[str] = Counter()
        for kernel in kernels(path, self.feeds[0], optimize=optimize, folded=folded):
            found[kernel[0]] += macs(kernel)
        return found


def size(path: Path) -> int:
    """Bytes of a file and of the data files that it names."""
    graph = onnx.load(str(path), load_external_data=False).graph
    beside = {e.value for g in graphs(graph) for t in g.initializer for e in t.external_data if e.key == "location"}
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)


# ---------------------------------------------------------------------- stages, in their order


def given(row: Row) -> dict[str, Any]:
    """What the given file is; its work counted on a run without optimizations."""
    proto = onnx.load(str(row.model))
    floats = [t for g in graphs(proto.graph) for t in initializers(g) if t.data_type in (1, 10, 11, 16)]
    return {
        "bytes": size(row.model),
        "float_share": sum(map(stored, floats)) / size(row.model),
        "float_bytes": sum(map(stored, floats)) / max(1, sum(count(t) for t in floats)),
        "opset": opsets(proto),
        "nodes": sum(len(g.node) for g in graphs(proto.graph)),
        "producer": proto.producer_name,
        "macs": sum(row.work(row.model, optimize=False).values()),
    }


def opsets(proto: onnx.ModelProto) -> dict[str, int]:
    return {d.domain or "ai.onnx": d.version for d in proto.opset_import}


def initializers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    behind = [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")]
    return [*graph.initializer, *behind]


def count(tensor: onnx.TensorProto) -> float:
    return float(np.prod(tensor.dims))


def stored(tensor: onnx.TensorProto) -> float:
    return count(tensor) * {1: 4, 10: 2, 11: 8, 16: 2}[tensor.data_type]


def int8(row: Row) -> dict[str, Any]:
    """The file that is made by default: size, distance, and which share of its work runs on integers."""
    start = time.perf_counter()
    path = row.quantize("int8")
    took = time.perf_counter() - start
    everything, ran = row.work(path, optimize=False), row.work(path, optimize=True)
    total = sum(everything.values())
    left = Counter({op: n for op, n in ran.items() if n and not is_int8(op)})
    alone = sum(n for op, n in left.items() if op == "MatMulNBits")
    return row.judged(path) | {
        "seconds": took,
        "share": sum(n for op, n in ran.items() if is_int8(op)) / total if total else None,
        "weights_alone": alone / total if total else None,
        "float": {op: n / total for op, n in left.most_common(3)} if total else {},
        "opset": opsets(onnx.load(str(path), load_external_data=False)),
    }


def dynamic(row: Row) -> dict[str, Any]:
    """The same with `--mode dynamic`."""
    return row.judged(row.quantize("dynamic", mode="dynamic"))


def ort_static(row: Row) -> dict[str, Any]:
    """onnxruntime's static quantizer behind its pre-processing, all by default."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: list[measured.Feed]) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> measured.Feed | None:
            return next(self._feeds, None)

    path, (source, failed) = row.out / "ort_static.onnx", prepared(row)
    quantize_static(str(source), str(path), Reader(row.calib))
    return row.judged(path) | failed


def ort_dynamic(row: Row) -> dict[str, Any]:
    """onnxruntime's dynamic quantizer behind its pre-processing, all by default."""
    from onnxruntime.quantization import quantize_dynamic

    path, (source, failed) = row.out / "ort_dynamic.onnx", prepared(row)
    quantize_dynamic(str(source), str(path))
    return row.judged(path) | failed


def prepared(row: Row) -> tuple[Path, dict[str, str]]:
    """The given file as onnxruntime's own pre-processing leaves it; as it was where that fails, and why it did."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = row.out / "prepared.onnx"
    try:
        if not path.exists():
            quant_pre_process(str(row.model), str(path))
    except Exception as e:  # of whatever it raises; symbolic shapes need sympy
        path.unlink(missing_ok=True)
        return row.model, {"unprepared": f"{type(e).__name__}: {first_line(e)}"}
    return path, {}


def speed(row: Row) -> dict[str, Any]:
    """All files in turns: speed against the given file."""
    loaded = {"float": measured.session(row.model, row.threads)}
    for name in ("int8", "dynamic", "ort_static", "ort_dynamic"):
        path = row.out / f"{name}.onnx"
        try:
            if path.exists():
                loaded[name] = measured.session(path, row.threads)
                measured.run(loaded[name], row.feeds[0])
        except Exception:  # told by its own stage
            loaded.pop(name, None)
    clock = time.process_time_ns if row.threads == 1 else time.perf_counter_ns
    return {name: list(values) for name, values in measured.in_turns(loaded, row.feeds, row.seconds, clock).items()}


def channels(row: Row) -> dict[str, Any]:
    """Work that is left when channels are cut to KEPT of it, counted on a real run."""
    import onnxshot

    path = row.out / "channels.onnx"
    how: dict[str, Any] = {"importance": "l2"} if row.effort == "fast" else {}
    calib = str(row.folder / "calib")
    onnxshot.shrink(row.model, calib, target_flops=KEPT, output=path, **how, **row.options())
    # A written file holds what constants make as one constant: counted in the given one it would pass for work cut.
    before, after = (sum(row.work(p, optimize=False, folded=True).values()) for p in (row.model, path))
    return row.judged(path) | {"kept": after / before if before else None}


def fp16(row: Row) -> dict[str, Any]:
    """The file with floats of 16 bits."""
    return row.judged(row.quantize("fp16", precision="fp16"))


def openvino(row: Row) -> dict[str, Any]:
    """The file for OpenVINO, run there in float32 but for what is quantized."""
    import openvino as ov

    path = row.quantize("openvino", target="openvino", emit=["onnx"])
    core = ov.Core()
    net = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    plain = measured.session(row.model)
    names = measured.tensors(plain)
    places = {name: i for i, name in enumerate(arg.name for arg in plain.get_outputs())}
    wanted, got = [], []
    for feed in row.feeds:
        wanted.append(measured.run(plain, feed, names))
        known = {port.get_any_name() for port in net.inputs}
        values = net({name: value for name, value in feed.items() if name in known})
        got.append([np.asarray(values[net.outputs[places[name]]]) for name in names])
    return {"bytes": size(path), **measured.distance(wanted, got)}


STAGES: dict[str, Callable[[Row], dict[str, Any]]] = {
    stage.__name__: stage for stage in (given, int8, dynamic, ort_static, ort_dynamic, speed, channels, fp16, openvino)
}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    most = job["memory"] << 30
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    row = Row(Path(job["folder"]), Path(job["out"]), job["effort"], job["seconds"], job["threads"])
    with Path(job["journal"]).open("a", buffering=1) as journal:
        for name in job["stages"]:
            journal.write(json.dumps({"stage": name}) + "\n")
            try:
                values = STAGES[name](row)
            except Exception as e:
                values = {"why": f"{type(e).__name__}: {first_line(e)}"}
            journal.write(json.dumps({"stage": name, "values": values}) + "\n")


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Exception from"):  # OpenVINO: places in its source, and then the reason
        lines = lines[-1:]
    return lines[0][:300] if lines else ""


if __name__ == "__main__":
    main()
