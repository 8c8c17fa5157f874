"""A detector in int8, judged by its detections and not by an average: `python examples/detector.py`.

Boxes in pixels and scores in 0..1 come out of one tensor. One scale for both would round the scores to zero; the
report counts the detections that both models make.
"""

import sys
from pathlib import Path

import onnxshot

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
MODEL = FIXTURES / "models" / "digits_detector.onnx"
SCENES = FIXTURES / "data" / "scenes"


def main(out: Path) -> None:
    """Quantize, and print how many detections are the same, and how good boxes and scores are each."""
    made = out / "detector.int8.onnx"
    result = onnxshot.quantize(MODEL, SCENES / "calib", preset=str(SCENES / "preset.yaml"), output=made)
    report = result.report
    print(f"size        {MODEL.stat().st_size / 1e6:.2f} -> {made.stat().st_size / 1e6:.2f} MB")
    for name, count in report.matches.items():
        print(f"{count['kind']:<11} {count['same']} of {count['of']} are the same in output {name!r}")
    for name, parts in report.output_parts.items():
        print(
            f"quiet, loud {parts['quiet_db']:.1f} dB of scores, {parts['loud_db']:.1f} dB of boxes in output {name!r}"
        )
    print(f"int8        {100 * (report.int8_macs_share or 0):.0f} % of the work, {report.speedup or 1:.2f}x as fast")
    for skip in report.skips[:3]:
        print(f"float       {skip.node}: {skip.reason}")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
