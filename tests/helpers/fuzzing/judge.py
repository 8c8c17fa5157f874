"""What ONNX Runtime makes of a mutant, what onnxshot makes of it, and whether the two agree."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from handmade.core import samples
from numpy.typing import NDArray

import onnxshot
from onnxshot.calibration.readers import split
from onnxshot.errors import OnnxshotError
from onnxshot.maths.sqnr import SqnrSum

Feed = dict[str, NDArray[Any]]
Outputs = list[dict[str, Any]]
SAME = 1e-4  # of an output's largest value: float rounding, where products are summed in another order
TOLD_DB = 0.5
EXACT_DB = 60.0  # above it, two figures that differ say the same
_OPTIMIZED = (True, False)


@dataclass(frozen=True)
class Truth:
    """The outputs of a mutant in ONNX Runtime, with its optimizations and without, by sample; None: it does not run.

    drift: how far the two are from each other, of an output's largest value; steady: two runs give the same.
    """

    fast: Outputs | None
    plain: Outputs | None
    steady: bool = True
    why: str = ""

    @property
    def runs(self) -> bool:
        return self.fast is not None or self.plain is not None


def run(model: Path, feeds: list[Feed], *, optimize: bool) -> Outputs:
    """The outputs by name, for each sample. Raises what ONNX Runtime raises."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    asked = {i.name for i in session.get_inputs()}
    return [
        dict(zip(names, session.run(names, {k: v for k, v in f.items() if k in asked}), strict=True)) for f in feeds
    ]


def truth(model: Path, feeds: list[Feed]) -> Truth:
    """What ONNX Runtime makes of it."""
    found: list[Outputs | None] = []
    why = ""
    for optimize in _OPTIMIZED:
        try:
            found.append(run(model, feeds, optimize=optimize))
        except Exception as e:
            found.append(None)
            why = why or str(e).splitlines()[0][:200]
    steady = True
    if found[0] is not None:
        steady = not differs(found[0], run(model, feeds, optimize=True), SAME)
    return Truth(found[0], found[1], steady, why)


def differs(wanted: Outputs, got: Outputs, tolerance: float) -> str:
    """The first difference in words; empty where there is none beyond rounding."""
    for number, (one, other) in enumerate(zip(wanted, got, strict=True)):
        if list(one) != list(other):
            return f"outputs {list(one)} became {list(other)}"
        for name in one:
            if what := _differs(one[name], other[name], tolerance):
                return f"sample {number}, output {name!r}: {what}"
    return ""


def _differs(a: Any, b: Any, tolerance: float) -> str:
    if isinstance(a, list | dict) or a is None:
        return "" if type(a) is type(b) and len(a or ()) == len(b or ()) else "another value"
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return ""  # a sparse tensor, say
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {list(a.shape)} became {b.dtype} {list(b.shape)}"
    tolerance *= 16.0 if a.dtype == np.float16 else 1.0
    if a.dtype.kind not in "fc":
        share = np.mean(a != b) if a.size else 0.0
        return f"{share:.1%} of the values differ" if share else ""
    a, b = (v.astype(np.float32) if v.dtype == np.float16 else v for v in (a, b))
    finite = np.isfinite(a)
    if (finite & ~np.isfinite(b)).any():
        return f"{np.count_nonzero(finite & ~np.isfinite(b))} of {a.size} finite values became NaN or infinite"
    if (~finite & np.isfinite(b)).any():
        return f"{np.count_nonzero(~finite & np.isfinite(b))} of {a.size} values that were not finite became finite"
    if not finite.any():
        return ""
    x, y = a[finite].astype(np.float64), b[finite].astype(np.float64)
    worst, largest = np.abs(x - y).max(), np.abs(x).max()
    return f"differs by {worst:.3g}, where the largest is {largest:.3g}" if worst > tolerance * largest else ""


def drift(found: Truth) -> float:
    """How far ONNX Runtime's optimizer moves the outputs, of the largest value; infinite where it breaks them."""
    if found.fast is None or found.plain is None:
        return SAME
    for tolerance in (SAME, 1e-3, 1e-2):
        if not differs(found.fast, found.plain, tolerance) and not differs(found.plain, found.fast, tolerance):
            return tolerance * (1 if tolerance == SAME else 10)
    return np.inf


def same(found: Truth, made: Path, feeds: list[Feed]) -> str:
    """Whether a file does what the mutant does, with optimizations or without; a difference in words."""
    tolerance = drift(found)
    if not found.steady or tolerance == np.inf:
        return ""  # nothing can be held against what is not itself the same twice
    said = []
    for optimize, wanted in zip(_OPTIMIZED, (found.fast, found.plain), strict=True):
        if wanted is None:
            continue
        try:
            got = run(made, feeds, optimize=optimize)
        except Exception as e:
            said.append(f"the mutant runs, the result does not: {str(e).splitlines()[0][:300]}")
            continue
        said.append(differs(wanted, got, tolerance))
    return said[0] if said and all(said) else ""


def told_truly(found: Truth, made: Path, feeds: list[Feed], report: Any) -> str:
    """Whether the SQNR of each output, measured on the samples held out, is what the report tells."""
    if found.fast is None or not found.steady:
        return ""
    unseen = split(len(feeds))[1]  # those that nothing was learned from
    numbers = unseen if report.samples.get("held_out", 0) == len(unseen) else range(len(feeds))
    try:
        got = run(made, [feeds[i] for i in numbers], optimize=True)
    except Exception as e:
        return f"the result does not run: {str(e).splitlines()[0][:300]}"
    asked = dict(report.output_sqnr_db)
    kept_out = report.judged  # figures of a part of an output, or of what stands in front of it, are not measured here
    if kept_out.get("random") or kept_out.get("ordered") or set(asked) - set(got[0] if got else ()):
        asked = {}
    for name, told in asked.items():
        if name in kept_out.get("copied", ()):
            continue
        total = SqnrSum()
        for number, outputs in zip(numbers, got, strict=True):
            if name not in outputs:
                return f"output {name!r} is not in the result"
            if outputs[name].shape != found.fast[number][name].shape:
                return f"output {name!r} is {outputs[name].shape}, not {found.fast[number][name].shape}"
            total.add(found.fast[number][name], outputs[name])
        if abs(total.db - told) > TOLD_DB and min(total.db, told) < EXACT_DB:
            return f"output {name!r}: told {told:.1f} dB, measured {total.db:.1f}"
    notes = " ".join([*report.notes, *(f"NaN: {words}" for words in report.not_finite)])
    for number, outputs in zip(numbers, got, strict=True):
        for name, value in outputs.items():
            wanted = found.fast[number].get(name)
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not isinstance(wanted, np.ndarray):
                continue
            if wanted.shape == value.shape and (np.isfinite(wanted) & ~np.isfinite(value)).any() and "NaN" not in notes:
                return f"output {name!r} has values that are not finite where the mutant's are, and no note says so"
    return ""


def _says_it_is_unproven(report: Any) -> bool:
    said = ("not compared", "not loaded", "compared with the normalized model")
    return any(words in note for note in report.notes for words in said)


def attempts(model: Path, feeds: list[Feed], found: Truth, number: int) -> dict[str, Callable[[], str]]:
    """What is done to a mutant, by name: each gives a fault in words, or nothing."""
    settings = onnxshot.Settings(threads=1, use_cache=False, bench_seconds=0.02)
    mode = ("static", "dynamic", "weights")[number % 3]
    data: Any = samples(feeds) if feeds and feeds[0] else "random"

    def emit() -> str:
        out = model.with_name("emitted.onnx")
        calib = None if data == "random" else data
        report = onnxshot.emit(model, to="onnx", output=out, calib=calib, settings=settings)
        if found.runs:
            return same(found, out, feeds)
        return "" if _says_it_is_unproven(report) else f"called done, though ONNX Runtime refuses it: {found.why}"

    def quantize() -> str:
        out = model.with_name("quantized.onnx")
        result = onnxshot.quantize(model, data, output=out, settings=settings, mode=mode, effort="fast")
        if found.runs:
            return told_truly(found, out, feeds, result.report)
        return "" if _says_it_is_unproven(result.report) else f"called done, though refused: {found.why}"

    def prune() -> str:
        out = model.with_name("pruned.onnx")
        result = onnxshot.prune(model, data, sparsity=0.5, output=out, settings=settings)
        if found.runs:
            return told_truly(found, out, feeds, result.report)
        return "" if _says_it_is_unproven(result.report) else f"called done, though refused: {found.why}"

    def inspect() -> str:
        onnxshot.inspect(model)
        return ""

    return {"inspect": inspect, "emit": emit, f"quantize {mode}": quantize, "prune": prune}


def outcome(attempt: Callable[[], str]) -> tuple[str, str]:
    """('done', ''), ('refused', the error) or ('fault', what is wrong)."""
    try:
        fault = attempt()
    except OnnxshotError as e:
        text = str(e)
        bad = type(e) is OnnxshotError or e.exit_code == 1 or not text.strip()
        return ("fault", f"an error of no kind: {text}") if bad else ("refused", f"{type(e).__name__}: {text}")
    except MemoryError as e:
        return "fault", f"MemoryError: {e}"
    except Exception as e:
        import traceback

        where = traceback.extract_tb(e.__traceback__)[-1]
        inside = [f for f in traceback.extract_tb(e.__traceback__) if "onnxshot" in f.filename][-1:]
        place = " <- ".join(f"{Path(f.filename).name}:{f.lineno}" for f in (where, *inside))
        return "fault", f"uncaught {type(e).__name__}: {str(e)[:200]} ({place})"
    return ("fault", fault) if fault else ("done", "")
