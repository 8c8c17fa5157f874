"""What pruning and int8 bring, alone and together: `python benchmarks/compress.py MODEL --calib DATA`, Markdown.

SQNR and agreement are of the quarter of the samples that nothing was learned from; all four files are timed in turns.
The scoring command is run with each file in place of {} and prints a number, or a JSON object with it as "candidate".
"""

from __future__ import annotations

import argparse
import gzip
import json
import shlex
import subprocess
import tempfile
from pathlib import Path

from readme import THREADS, head, table

import onnxshot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--preset")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--score", help="a command that scores a file, such as 'python score.py {} --json'")
    args = parser.parse_args()
    settings = onnxshot.Settings(threads=THREADS, use_cache=False)
    given = {"preset": args.preset, "settings": settings, "effort": args.effort}
    with tempfile.TemporaryDirectory() as folder:
        alone = onnxshot.quantize(args.model, args.calib, output=Path(folder) / "int8.onnx", **given).report
        both = onnxshot.compress(args.model, args.calib, sparsity=args.sparsity, keep_stages=folder, **given).report
        _, pruned, quantized = both.stages
        rows = [("float", args.model, None), ("int8", Path(folder) / "int8.onnx", alone)]
        rows += [("pruned", Path(pruned.path), pruned), ("pruned, int8", Path(quantized.path), quantized)]
        times = onnxshot.bench([path for _, path, _ in rows], args.calib, preset=args.preset, threads=THREADS)
        head(f"`{args.model.parent.name}`", "MB", "gzip MB", "speed", "SQNR dB", "agreement", "score")
        for (name, path, row), timed in zip(rows, times, strict=True):
            table(
                name,
                f"{path.stat().st_size / 1e6:.2f}",
                f"{len(gzip.compress(path.read_bytes())) / 1e6:.2f}",
                f"{timed.ratio:.2f}x",
                "" if row is None else f"{row.sqnr_db:.1f}",
                "" if row is None or row.agreement is None else f"{100 * row.agreement:.1f} %",
                "" if args.score is None else score(args.score, path),
            )


def score(command: str, path: Path) -> str:
    words = [word.replace("{}", str(path)) for word in shlex.split(command)]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return f"{found['candidate'] if isinstance(found, dict) else found:.1f}"


if __name__ == "__main__":
    main()
