"""The memory budget: how it is written, checked and inherited, and what the machine has."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade import HANDMADE

import onnxshot
from onnxshot import memory
from onnxshot.cli import app as cli
from onnxshot.errors import UsageError
from onnxshot.runtimes.parallel import in_order
from onnxshot.settings import budgeted


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("4G", 4 << 30), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("1.5 gib", 3 << 29), ("4GB", 4_000_000_000),
        ("300000000", 300_000_000), ("300000000B", 300_000_000), (300_000_000, 300_000_000), ("1048576K", 1 << 30),
        ("1T", 1 << 40), (None, None),
    ],
)  # fmt: skip
def test_sizes_are_read_with_the_usual_units(given: int | str | None, size: int | None) -> None:
    assert memory.parsed(given) == size
    assert onnxshot.Settings(memory=given).memory_bytes == size


@pytest.mark.parametrize("given", ["", "G", "4X", "-1", "4 G B", "1e9", "nan", "0x10", "\u0664G", "4G\n4G"])
def test_what_is_no_size_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"memory is .*a size such as 4G"):
        onnxshot.Settings(memory=given)


@pytest.mark.parametrize("given", [0, "0", "4", "255M", (256 << 20) - 1, True])
def test_less_than_any_run_needs_is_refused_with_the_reason(given: int | str) -> None:
    with pytest.raises(UsageError, match=r"memory is .*(less than 256M.*libraries|a size such as|give int or str)"):
        onnxshot.Settings(memory=given)
    assert memory.parsed("256M") == memory.LEAST


def test_other_types_are_refused() -> None:
    with pytest.raises(UsageError, match=r"memory is float 4.5"):
        onnxshot.Settings(memory=4.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [256 << 20, 300 << 20, 1 << 30, 5 << 30, 1536 << 20])
def test_a_size_that_is_told_can_be_given(size: int) -> None:
    assert memory.parsed(memory.told(size)) == pytest.approx(size, rel=0.01)


def test_more_than_the_machine_has_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2 << 30)
    with pytest.raises(UsageError, match="memory is 3G, and this machine has 2G"):
        onnxshot.inspect("nowhere.onnx", settings=onnxshot.Settings(memory="3G"))
    with memory.limited(2 << 30):
        assert memory.budget() == 2 << 30


def test_a_verb_works_within_its_budget_and_what_it_calls_inherits_it() -> None:
    seen: list[int] = []

    @budgeted
    def inner(*, settings: onnxshot.Settings | None = None) -> None:
        seen.extend(in_order(lambda _: memory.budget(), range(2), 2))

    @budgeted
    def outer(*, memory: int | str | None = None) -> None:
        inner()
        inner(settings=onnxshot.Settings(threads=1))
        inner(settings=onnxshot.Settings(memory="512M"))

    outer(memory="1G")
    assert seen == [1 << 30] * 4 + [1 << 29] * 2
    assert memory.budget() == memory.default_budget()


def test_every_verb_that_runs_models_takes_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1 << 30)
    much = onnxshot.Settings(memory="2G")
    verbs = ("quantize", "tune", "prune", "shrink", "compress", "calibrate", "sensitivity")
    calls = [
        lambda verb=verb: getattr(onnxshot, verb)("x.onnx", None, settings=much)
        for verb in verbs
        if verb not in ("tune", "calibrate")
    ]
    calls += [
        lambda: onnxshot.compare("x.onnx", "y.onnx", None, settings=much),
        lambda: onnxshot.diff("x.onnx", "y.onnx", settings=much),
        lambda: onnxshot.emit("x.onnx", output="y.onnx", settings=much),
        lambda: onnxshot.inspect("x.onnx", settings=much),
        lambda: onnxshot.calibrate("x.onnx", None, settings=much),
        lambda: onnxshot.tune("x.onnx", None, goal=onnxshot.Goal(min_sqnr=1.0), settings=much),
        lambda: onnxshot.replay("x.onnx", "x.recipe.yaml", "y.onnx", settings=much),
        lambda: onnxshot.bench(["x.onnx"], memory="2G"),
        lambda: onnxshot.verify("bundle", memory="2G"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="memory is 2G"):
            call()


def test_the_record_and_the_bytes_do_not_depend_on_the_budget(tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    onnx.save(case.model, str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "calib.npz", x=np.stack([feed["x"] for feed in case.feeds]))
    made = []
    for size in (None, "256M"):
        out = tmp_path / f"{size}" / "net.int8.onnx"
        out.parent.mkdir()
        how = onnxshot.Settings(memory=size, verify=False, use_cache=False)
        onnxshot.quantize(tmp_path / "net.onnx", str(tmp_path / "calib.npz"), output=out, effort="fast", settings=how)
        made.append([path.read_bytes() for path in sorted(out.parent.iterdir())])
    assert made[0] == made[1]


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_leaves_what_its_group_leaves_with_cached_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    home, names, prefix = tmp_path, ("memory.max", "memory.current"), ""
    if version == 1:
        home, names, prefix = tmp_path / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"
        home.mkdir()
    for name, value in zip(names, (1 << 30, 700 << 20), strict=True):
        (home / name).write_text(f"{value}\n")
    (home / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {300 << 20}\n")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert memory.free_bytes() == (1024 - 700 + 300) << 20
    assert memory.machine_bytes() == 1 << 30
    assert memory.default_budget() == memory.LEAST  # a quarter would be less


def test_what_a_stage_freed_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(memory, "release", lambda: calls.append("released"))
    report = onnxshot.Report(input="x.onnx", recipe={})
    with report.timed("calibrate"):
        calls.append("worked")
    assert calls == ["worked", "released"]


def test_arrays_of_searches_take_a_small_share() -> None:
    with memory.limited(memory.LEAST):
        assert memory.waiting_bytes() == memory.LEAST // 128


COMMANDS = {
    "quantize": "x.onnx", "prune": "x.onnx --sparsity 0.5", "compress": "x.onnx --sparsity 0.5",
    "calibrate": "x.onnx -o s.npz", "compare": "x.onnx y.onnx", "diff": "x.onnx y.onnx", "bench": "x.onnx",
    "verify": "bundle", "sensitivity": "x.onnx", "replay": "x.onnx r.yaml", "emit": "x.onnx", "inspect": "x.onnx",
    "ui": "", "batch": "m.yaml",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_runs_models_has_the_option(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.yaml").write_text("models: [x.onnx]\noutput: out\n")
    monkeypatch.setattr(sys, "argv", ["onnxshot", command, *COMMANDS[command].split(), "--memory", "1M"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "memory is 1M, less than 256M (give 256M or more" in capsys.readouterr().err
