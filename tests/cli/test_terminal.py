"""Every command of the README and of docs/ on a pseudo-terminal, in the root of a clone, with its bars shown."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pseudo_terminal
import pytest
from doc_pages import PAGES, commands_of, yaml_of
from fixture_data import FIXTURES, facts

import onnxshot

ROOT = Path(__file__).resolve().parents[2]
KNOWN = facts()["digits_mobile"]
MODEL = f"fixtures/{KNOWN['file']}"
# As `python -m onnxshot`, but a bar is shown at once: these models are done within its first second.
SHOW_BARS = "import onnxshot.cli.terminal as t; t.SHOWN_AFTER = 0; from onnxshot.cli.app import entry; entry()"
# Placeholders of the pages, and what stands for them in the folder that `clone` makes.
STAND_INS = {
    **dict.fromkeys(("MODEL", "MODEL...", "M", "model.onnx", "FLOAT", "A"), "model.onnx"),
    **dict.fromkeys(("CANDIDATE", "B", "INT8", "FILE", "model.int8.onnx"), "net.onnx"),
    **dict.fromkeys(("PATH", "old"), sys.executable),
    **dict.fromkeys(("DATA", "D", "data/"), "data"),
    "DIR": "bundle", "MANIFEST.yaml": "manifest.yaml", "RECIPE": "net.recipe.yaml", "R.yaml": "stages.yaml",
    "smollm/": "language", "texts.txt": "language/calib.txt",
    "L": "0.5", "T": "ort", "FORMAT": "onnx",
}  # fmt: skip
# Commands that a sentence names without what they need.
INCOMPLETE = ("quantize", "quantize FOLDER", "emit", "calibrate --holdout 0")
LASTING = {"ui": "http://"}  # what a command shows that runs until it is stopped
BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"  # what rich draws bars with
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _commands() -> Iterator[Any]:
    """Every command of the pages once, called after the page where it stands first."""
    seen = set()
    for page in PAGES:
        for words in commands_of(page):
            text = shlex.join(words)
            if text not in seen and text not in INCOMPLETE:
                seen.add(text)
                yield pytest.param(words, id=f"{Path(page).stem}: {text[:70]}")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a clone, with a model, samples and what earlier commands of the pages have made."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("onnxshot", "calibration", "fixtures"):
        (root / name).symlink_to(ROOT / name)
    shutil.copyfile(ROOT / MODEL, root / "model.onnx")
    shutil.copytree(FIXTURES / "language", root / "language")
    data = np.load(FIXTURES / KNOWN["heldout"])
    pictures = ((data["images"][:24, None, None].astype(np.float32) / 255) - data["mean"]) / data["std"]
    for part, some in {"data": slice(None), "part1": slice(12), "part2": slice(12, None)}.items():
        (root / part).mkdir()
        for number, picture in enumerate(pictures[some].astype(np.float32)):
            np.savez(root / part / f"{number:02}.npz", image=picture)
    made = onnxshot.quantize(root / "model.onnx", root / "data", output=root / "net.onnx", effort="fast")
    made.report.save(root / "r.json")
    onnxshot.bundle(made, root / "bundle", root / "data")
    for name, part in {"1.npz": "part1", "2.npz": "part2", "all.npz": "data"}.items():
        onnxshot.calibrate(root / "model.onnx", root / part, output=root / name)
    (root / "out").mkdir()
    shutil.copyfile(root / "net.onnx", root / "out" / "net.int8.onnx")
    (root / "manifest.yaml").write_text(yaml_of("README.md", "models"))
    (root / "stages.yaml").write_text("stages: [{prune: {sparsity: ${sparsity:0.5}}}, {quantize: {effort: fast}}]\n")
    (root / "score.py").write_text("def top1(run):\n    return 1.0\n")
    return root


@pytest.mark.parametrize("words", list(_commands()))
def test_a_command_of_the_pages_ends_well_on_a_terminal(words: list[str], clone: Path, tmp_path: Path) -> None:
    words = [STAND_INS.get(word, word) for word in words]
    if "openvino" in words:
        pytest.importorskip("openvino")
    env = {**os.environ, "ONNXSHOT_CACHE": str(tmp_path), "BROWSER": "true"}
    shown = pseudo_terminal.run(
        [sys.executable, "-c", SHOW_BARS, *words], clone, env, until=LASTING.get(words[0], "")
    )  # fmt: skip
    text = ESCAPES.sub("", shown.text)
    assert shown.code == 0, text
    assert not re.search(r"internal error|Traceback|Warning|\bnan\b", text), text
    if words[0] in ("quantize", "prune", "compress") and "--calib" in words:
        assert BAR in shown.text, "no bar was shown"
    drawn = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]|\x1b\[1A|\x1b\[2K", shown.text) if BAR in line]
    assert [line for line in drawn if len(line.rstrip()) > pseudo_terminal.COLUMNS] == []


def test_rates_of_bars_are_plain_numbers() -> None:
    from onnxshot.cli.terminal import _Rate

    shown = {speed: _Rate().render(SimpleNamespace(speed=speed)).plain for speed in (None, 0.1234, 99.94, 1024.4, 2e6)}
    assert shown == {None: "", 0.1234: "0.123/s", 99.94: "99.9/s", 1024.4: "1024/s", 2e6: "2000000/s"}
