"""Nothing of the user's is lost: no file that a run reads is written, and only files of onnxshot's own are replaced."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from fixture_runs import command
from onnx import numpy_helper
from onnxruntime import InferenceSession

import onnxshot
from onnxshot import Settings
from onnxshot.delivery.overwrite_checks import foreign_artifact
from onnxshot.delivery.record import VERSION_KEY, leave_beside
from onnxshot.errors import UsageError
from onnxshot.files.conflicts import Files, Read, Write

QUICK = Settings(verify=False, use_cache=False, threads=1)
NET = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[N, 16, 3, 3] x) => (float[N, 16, 3, 3] y) { h = Conv(x, w)  y = Relu(h) }
"""


def net(seed: int = 0) -> onnx.ModelProto:
    model = onnx.parser.parse_model(NET)
    values = np.random.default_rng(seed).standard_normal((16, 16, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return model


def tree(folder: Path) -> dict[str, str]:
    """Every file and link below the folder, with the hash of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of every kind that a run can read."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "data").mkdir()
    rng = np.random.default_rng(1)
    for i in range(4):
        np.savez(folder / "data" / f"{i}.npz", x=rng.standard_normal((1, 16, 3, 3)).astype(np.float32))
    np.savez(folder / "one.npz", x=rng.standard_normal((4, 16, 3, 3)).astype(np.float32))
    onnx.save(net(), str(folder / "net.onnx"))
    onnx.save(net(), str(folder / "big.onnx"), save_as_external_data=True, location="big.bin", size_threshold=0)
    onnx.save(net(2), str(folder / "other.onnx"))
    (folder / "p.yaml").write_text("layout: NCHW\n")
    (folder / "base.yaml").write_text("effort: fast\n")
    (folder / "r.yaml").write_text("extends: base.yaml\nmode: static\n")
    (folder / "code.py").write_text("def feeds():\n    raise AssertionError('the work has begun')\n\nscore = feeds\n")
    (folder / "tokenizer.json").write_text("{}")
    onnxshot.calibrate(folder / "net.onnx", folder / "data", output=folder / "s.npz", settings=QUICK)
    result = onnxshot.quantize(folder / "net.onnx", folder / "data", output=folder / "q.onnx", settings=QUICK)
    onnxshot.bundle(result, folder / "bundle", folder / "data", settings=QUICK)
    return folder


@pytest.fixture
def given(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the folder that we are in."""
    folder = tmp_path / "given"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    return folder


QUANTIZE = "quantize net.onnx --calib data"
READ = {  # what would be written over what, by whatever option: the command, and what it says
    "report over the model": (f"{QUANTIZE} --report net.onnx", "the report net.onnx is the input itself"),
    "report over weights": ("quantize big.onnx --calib data --report big.bin", "external data of the input itself"),
    "report over a sample": (f"{QUANTIZE} --report data/2.npz", "one of the samples itself"),
    "report over the samples": ("quantize net.onnx --calib one.npz --report one.npz", "one of the samples itself"),
    "report over the recipe": (f"{QUANTIZE} --recipe r.yaml --report r.yaml", "the recipe itself"),
    "report over what it extends": (f"{QUANTIZE} --recipe r.yaml --report base.yaml", "the recipe itself"),
    "report over the preset": (f"{QUANTIZE} --preset p.yaml --report p.yaml", "the preset itself"),
    "report over statistics": ("quantize net.onnx --stats s.npz --report s.npz", "the statistics itself"),
    "report over the reader": (
        "quantize net.onnx --calib code.py:feeds --report code.py", "the reader of samples itself"),
    "report over a reader's module": (
        "quantize net.onnx --calib code_of_mine:feeds --report code_of_mine.py", "the reader of samples itself"),
    "report over the evaluation": (
        f"{QUANTIZE} --eval code.py:score --max-drop 0.1 --report code.py", "the evaluation itself"),
    "report over a tokenizer": (f"{QUANTIZE} --bundle new --report tokenizer.json", "belongs to the input itself"),
    "output over the recipe": (f"{QUANTIZE} --recipe r.yaml -o r.yaml", "the output r.yaml is the recipe itself"),
    "output over weights": ("quantize big.onnx --calib data -o big.bin", "has the suffix of weights without a graph"),
    "record over the recipe": (
        f"{QUANTIZE} --recipe q.recipe.yaml -o q.onnx", "the record q.recipe.yaml is the recipe itself"),
    "a kept stage over the model": (
        "compress pruned.onnx --calib data --sparsity 0.5 -o o.onnx --keep-stages .", "the kept stage pruned.onnx is"),
    "compress, report over the recipe": (
        "compress net.onnx --calib data --recipe r.yaml --report base.yaml", "the recipe itself"),
    "prune, report over the model": ("prune net.onnx --sparsity 0.5 --report net.onnx", "the input itself"),
    "prune, output over samples": ("prune net.onnx --calib one.npz --sparsity 0.5 -o one.npz", "one of the samples"),
    "channels, report over the evaluation": (
        "prune net.onnx --pattern channels --max-drop 0.1 --eval code.py:score --report code.py", "the evaluation"),
    "statistics over a sample": ("calibrate net.onnx --calib data -o data/0.npz", "one of the samples itself"),
    "statistics among the samples": ("calibrate net.onnx --calib data -o data/s.npz", "from then on"),
    "a bundle among the samples": ("quantize net.onnx --calib . -o out.onnx --bundle new", "from then on"),
    "merged over a part": ("calibrate --merge s.npz t.npz -o t.npz", "one of the files to merge itself"),
    "sensitivity, report over statistics": (
        "sensitivity net.onnx --calib data --stats s.npz --report s.npz", "the statistics itself"),
    "compare, report over the candidate": (
        "compare net.onnx q.onnx --calib data --report q.onnx", "the report q.onnx is the candidate itself"),
    "compare, report over the float model": ("compare net.onnx q.onnx --calib data --report net.onnx", "the input"),
    "emit, weights over weights": ("emit big.onnx --to openvino", "big.bin is external data of the input itself"),
    "emit, timings over the model": (
        "emit net.onnx --to openvino -o out.xml --timing-cache net.onnx", "the timing cache net.onnx is the input"),
    "emit, report over samples": ("emit net.onnx --calib one.npz --report one.npz", "one of the samples itself"),
    "replay over the model": ("replay net.onnx q.recipe.yaml -o net.onnx", "the output net.onnx is the input itself"),
    "replay over its record": ("replay net.onnx q.recipe.yaml -o q.onnx", "the record itself"),
    "replay over the result": ("replay net.onnx q.onnx -o q.onnx", "the output q.onnx is the record itself"),
    "a bundle over the model": (
        "quantize bundle/q.onnx --requantize --calib data -o out.onnx --bundle bundle", "which is the input"),
    "a bundle over the samples": (
        "quantize net.onnx --calib bundle/samples -o out.onnx --bundle bundle", "which is one of the samples"),
    "no bundle over the model": (
        "quantize b/net.onnx --calib data -o out.onnx --bundle b", "exists, and is no bundle"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_no_file_that_was_read_is_written(name: str, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, said = READ[name]
    shutil.copy("code.py", "code_of_mine.py")
    shutil.copy("net.onnx", "pruned.onnx")
    shutil.copy("s.npz", "t.npz")
    Path("b").mkdir()
    shutil.copy("net.onnx", "b/net.onnx")
    before = tree(given)
    assert command(*text.split()) == 2
    assert said in capsys.readouterr().err
    assert tree(given) == before


def spelled(path: Path) -> str:
    return f"data/../{path}"


def absolute(path: Path) -> str:
    return str(path.absolute())


def symlink(path: Path) -> str:
    Path("link").symlink_to(path)
    return "link"


def hard_link(path: Path) -> str:
    os.link(path, "hard")
    return "hard"


def through_a_folder(path: Path) -> str:
    Path("here").symlink_to(".")
    return f"here/{path}"


@pytest.mark.parametrize("way", [spelled, absolute, symlink, hard_link, through_a_folder])
@pytest.mark.parametrize("file", ["net.onnx", "data/0.npz", "r.yaml", "base.yaml"])
@pytest.mark.parametrize("option", ["--report", "-o", "--timing-cache"])
def test_a_file_is_known_by_every_name(
    option: str, file: str, way: Callable[[Path], str], given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = way(Path(file))
    before = tree(given)
    assert command(*QUANTIZE.split(), "--recipe", "r.yaml", option, place) == 2
    assert "itself" in capsys.readouterr().err
    assert tree(given) == before


def nothing(path: Path) -> None:
    """The link leads to a file that is not there yet."""


def old(path: Path) -> None:
    """An older file of the same kind is there."""
    if path.suffix == ".onnx":
        onnx.save(net(3), path)
    elif path.suffix == ".npz":
        np.savez(path, meta=np.zeros(1))
    else:
        path.write_text('{"schema_version": 1}')


WRITTEN = {  # what a link is named as, and the file that it leads to: the command
    "output": ("quantize net.onnx --calib data -o link.onnx", "link.onnx", "real/net.onnx"),
    "pruned": ("prune net.onnx --sparsity 0.5 -o link.onnx", "link.onnx", "real/net.onnx"),
    "report": (f"{QUANTIZE} -o q.onnx --report link.json", "link.json", "real/report.json"),
    "statistics": ("calibrate net.onnx --calib data -o link.npz", "link.npz", "real/s.npz"),
    "record": (f"{QUANTIZE} -o fresh.onnx", "fresh.recipe.yaml", "real/r.yaml"),
    "kept stage": (
        "compress net.onnx --sparsity 0.5 --calib data -o c.onnx --keep-stages kept", "kept/pruned.onnx",
        "real/pruned.onnx",
    ),
    "default output": (QUANTIZE, "net.int8.onnx", "real/net.onnx"),
    "replayed": ("replay net.onnx q.onnx --calib data -o link.onnx", "link.onnx", "real/again.onnx"),
}  # fmt: skip


@pytest.mark.parametrize("before", [nothing, old])
@pytest.mark.parametrize("name", WRITTEN)
def test_an_output_that_is_a_link_is_written_where_it_leads(
    name: str, before: Callable[[Path], None], given: Path
) -> None:
    text, link, real = WRITTEN[name]
    for path in (Path(link), Path(real)):
        path.parent.mkdir(exist_ok=True)
    if name not in ("record", "kept stage", "default output"):  # there, what is not onnxshot's own is left
        before(Path(real))
    Path(link).symlink_to(Path(real).absolute())
    assert command(*text.split()) == 0
    assert Path(link).is_symlink(), "the link stays"
    assert Path(link).resolve() == Path(real).resolve()
    assert Path(real).stat().st_size > 100
    if real.endswith(".onnx"):
        onnx.checker.check_model(onnx.load(real))


def test_what_belongs_to_an_output_lies_beside_what_the_link_leads_to(given: Path) -> None:
    Path("real").mkdir()
    Path("link.onnx").symlink_to("next.onnx")
    Path("next.onnx").symlink_to("real/net.onnx")
    before = tree(given)
    assert command("quantize", "big.onnx", "--calib", "data", "-o", "link.onnx") == 0
    assert {name for name in tree(given) if name not in before and not name.startswith("real/")} == {
        "link.onnx",
        "next.onnx",
    }
    assert {path.name for path in Path("real").iterdir()} >= {"net.onnx", "net.recipe.yaml"}
    ran = InferenceSession("real/net.onnx")  # with its data, where it has some
    assert ran.run(None, {"x": np.ones((1, 16, 3, 3), np.float32)})[0].shape == (1, 16, 3, 3)


NO_PLACE = {  # what a link leads to that is no place for a file
    "the stdout of the process": ("/proc/self/fd/{}", "leads through /proc/"),
    "a device": ("/dev/null", "leads through /dev"),
    "a pipe": ("pipe", "is no regular file"),
    "itself": ("link{}", "leads in a circle"),
    "a folder that is not there": ("nowhere/x", "there is no folder"),
}
OUTPUTS = {
    ".onnx": "quantize net.onnx --calib code.py:feeds -o link.onnx",
    ".json": "quantize net.onnx --calib code.py:feeds -o new.onnx --report link.json",
    ".npz": "calibrate net.onnx --calib code.py:feeds -o link.npz",
    ".recipe.yaml": "quantize net.onnx --calib code.py:feeds -o link.onnx",
}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")
@pytest.mark.parametrize("suffix", OUTPUTS)
@pytest.mark.parametrize("name", NO_PLACE)
def test_a_link_to_what_is_no_place_for_a_file_is_refused(
    name: str, suffix: str, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, said = NO_PLACE[name]
    os.mkfifo("pipe")
    with Path("held").open("wb") as held:
        Path(f"link{suffix}").symlink_to(place.format(held.fileno() if "fd" in place else suffix))
        before = tree(given)
        assert command(*OUTPUTS[suffix].split()) == 2
        assert said in capsys.readouterr().err
        assert Path(f"link{suffix}").is_symlink()
        assert tree(given) == before


def test_samples_that_are_links_are_known(given: Path) -> None:
    for path in sorted(Path("data").iterdir()):
        path.rename(path.name)
        path.symlink_to(f"../{path.name}")
    with pytest.raises(UsageError, match="one of the samples itself"):
        onnxshot.calibrate("net.onnx", "data", output="0.npz", settings=QUICK)


MEETING = {
    "report and output": f"{QUANTIZE} -o r.json --report r.json",
    "report and data file": "quantize big.onnx --calib data -o a.onnx --report a.onnx.data",
    "report and record": f"{QUANTIZE} -o a.onnx --report a.recipe.yaml",
    "report and weights": "emit net.onnx --to openvino -o a.xml --report a.bin",
    "report in the bundle": f"{QUANTIZE} -o a.onnx --bundle b --report b/report.json",
    "output in the bundle": f"{QUANTIZE} -o b/a.onnx --bundle b",
    "output and a kept stage": ("compress net.onnx --calib data --sparsity 0.5 -o st/quantized.onnx --keep-stages st"),
    "report above the output": f"{QUANTIZE} -o a/b.onnx --report a",
    "timings and output": f"{QUANTIZE} -o a.onnx --timing-cache a.onnx",
}


@pytest.mark.parametrize("name", MEETING)
def test_two_writes_that_meet_are_refused(name: str, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(given)
    assert command(*MEETING[name].split()) == 2
    error = capsys.readouterr().err
    assert "are both" in error or "lies in" in error
    assert tree(given) == before


FOREIGN = {  # a file of the user's that only follows from a name that was given: who writes there
    "net.bin": ("emit net.onnx --to openvino", "quantize net.onnx --calib data -o net.xml"),
    "net.xml": ("emit net.onnx --to openvino",),
    "net.normalized.onnx": ("emit net.onnx",),
    "net.int8.onnx": (QUANTIZE,),
    "net.pruned.onnx": ("prune net.onnx --sparsity 0.5",),
    "net.small.onnx": ("compress net.onnx --calib data --sparsity 0.5",),
    "net.replay.onnx": ("replay net.onnx q.recipe.yaml",),
    "quantized.onnx": ("compress net.onnx --calib data --sparsity 0.5 -o out.onnx --keep-stages .",),
    "out.xml": (f"{QUANTIZE} -o out.onnx --emit onnx,openvino",),
    "out.onnx": (f"{QUANTIZE} -o out.xml --emit onnx,openvino",),
    "out.bin": (f"{QUANTIZE} -o out.onnx --emit onnx,openvino",),
    "out.onnx.data": ("quantize big.onnx --calib data -o out.onnx", "prune big.onnx --sparsity 0.5 -o out.onnx"),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, every in FOREIGN.items() for text in every])
def test_what_nobody_named_and_onnxshot_has_not_written_stays(
    name: str, text: str, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.endswith(".onnx"):
        onnx.save(net(3), name)
    else:
        Path(name).write_text("mine")
    before = tree(given)
    assert command(*text.split()) == 2
    assert f"{name} would replace a file that is there" in capsys.readouterr().err
    assert tree(given) == before


AGAIN = [
    QUANTIZE,
    f"{QUANTIZE} -o out.onnx --emit onnx,openvino --report r.json",
    f"{QUANTIZE} -o out.xml",
    "quantize big.onnx --calib data --report r.html",
    "emit net.onnx --to openvino",
    "emit net.onnx",
    "emit big.onnx",
    "prune big.onnx --sparsity 0.5",
    "compress net.onnx --calib data --sparsity 0.5 --keep-stages st --bundle b",
    "calibrate net.onnx --calib data -o new.npz",
    "replay net.onnx q.recipe.yaml",
]


@pytest.mark.parametrize("text", AGAIN)
def test_a_run_replaces_what_the_same_run_has_made(text: str, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = text.split()
    assert command(*options) == 0, capsys.readouterr().err
    before = set(tree(given))
    assert command(*options) == 0, capsys.readouterr().err
    assert set(tree(given)) == before


@pytest.mark.parametrize("text", ["emit big.onnx --to openvino", f"{QUANTIZE} --emit openvino"])
def test_an_artifact_is_written_where_it_was_named_whatever_lies_beside_it(text: str, given: Path) -> None:
    """A link of the artifact's stem, such as a model that is linked into the folder, leads none of them away."""
    pytest.importorskip("openvino")
    Path("other").mkdir()
    Path("out.onnx").symlink_to(Path("other") / "out.onnx")
    assert command(*text.split(), "-o", "out.xml") == 0
    assert Path("out.xml").is_file()
    assert not list(Path("other").glob("out.[xb]*"))


def test_an_output_that_was_named_replaces_what_is_there(given: Path) -> None:
    onnx.save(net(3), "out.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    Path("r.json").write_text('{"schema_version": 1}')
    assert command("quantize", "big.onnx", "--calib", "data", "-o", "out.onnx", "--report", "r.json") == 0
    written = onnx.load("out.onnx")
    assert VERSION_KEY in {entry.key for entry in written.metadata_props}


def test_data_of_another_model_is_not_replaced(given: Path) -> None:
    onnx.save(net(3), "theirs.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    before = tree(given)
    with pytest.raises(UsageError, match=r"b\.onnx\.data .*theirs\.onnx has its weights in it"):
        onnxshot.quantize("big.onnx", "data", output="b.onnx", settings=QUICK)
    result = onnxshot.quantize("big.onnx", "data", settings=QUICK)
    with pytest.raises(UsageError, match=r"theirs\.onnx has its weights in it"):
        result.save("b.onnx")
    assert tree(given) == before


@pytest.mark.parametrize(
    "text",
    [
        "# What a.onnx was made of, and how.\n",
        "# What I want\neffort: best\n",
        "# What {} was made of, and how. onnxshot replay MODEL {} makes the same bytes again.\neffort: best\n",
    ],
)
def test_a_recipe_that_begins_like_a_record_is_left(text: str, given: Path) -> None:
    Path("a.recipe.yaml").write_text(text)
    result = onnxshot.quantize("net.onnx", "data", output="a.onnx", settings=QUICK)
    assert Path("a.recipe.yaml").read_text() == text
    assert any("left as it is" in note for note in result.report.notes)


def test_a_record_that_somebody_has_changed_is_left_and_one_that_nobody_has_is_renewed(given: Path) -> None:
    onnxshot.quantize("net.onnx", "data", output="a.onnx", settings=QUICK)
    record = Path("a.recipe.yaml")
    first = record.read_text()
    result = onnxshot.quantize("other.onnx", "data", output="a.onnx", settings=QUICK)
    assert record.read_text() != first
    assert not any("left as it is" in note for note in result.report.notes)
    changed = record.read_text() + "# keep this: it is the one we ship\n"
    record.write_text(changed)
    onnxshot.quantize("net.onnx", "data", output="a.onnx", settings=QUICK)
    assert record.read_text() == changed


def test_a_record_in_any_language_and_with_any_floats_is_known_again(given: Path) -> None:
    Path("größe \u00a0x").mkdir()
    place = Path("größe \u00a0x/a b:c.onnx")
    for _ in range(2):
        result = onnxshot.prune("net.onnx", sparsity=1e-5, output=place, settings=QUICK)
        assert not any("left as it is" in note for note in result.report.notes)
    assert yaml.safe_load(place.with_name("a b:c.recipe.yaml").read_text())["runs"]


# ---------------------------------------------------------------------- the Python API


@pytest.mark.parametrize(
    "call",
    [
        lambda: onnxshot.quantize("net.onnx", "data", output="net.onnx", settings=QUICK),
        lambda: onnxshot.quantize("net.onnx", "one.npz", output="one.npz", settings=QUICK),
        lambda: onnxshot.tune("net.onnx", "data", onnxshot.Goal(min_sqnr=1.0), output="net.onnx", settings=QUICK),
        lambda: onnxshot.tune("net.onnx", "data", onnxshot.Goal(max_drop=0.1, evaluate="code.py:score"),
                              output="code.py", settings=QUICK),
        lambda: onnxshot.prune("net.onnx", sparsity=0.5, output="net.onnx", settings=QUICK),
        lambda: onnxshot.shrink("net.onnx", target_flops=0.5, output="net.onnx", settings=QUICK),
        lambda: onnxshot.compress("net.onnx", "data", recipe="r.yaml", output="base.yaml", settings=QUICK),
        lambda: onnxshot.compress("net.onnx", "data", sparsity=0.5, keep_stages="st", settings=QUICK),
        lambda: onnxshot.calibrate("net.onnx", "one.npz", output="one.npz", settings=QUICK),
        lambda: onnxshot.emit("net.onnx", output="net.onnx", settings=QUICK),
        lambda: onnxshot.emit("q.onnx", output="net.onnx", reference="net.onnx", settings=QUICK),
        lambda: onnxshot.replay("net.onnx", "q.recipe.yaml", "q.onnx", settings=QUICK),
        lambda: onnxshot.quantize("net.onnx", np.load("x.npy", mmap_mode="r"), output="x.npy", settings=QUICK),
        lambda: onnxshot.quantize("net.onnx", [{"x": x[None]} for x in np.load("x.npy", mmap_mode="r")],
                                  output="x.npy", settings=QUICK),
        lambda: onnxshot.quantize("net.onnx", "data", settings=QUICK).save("net.onnx"),
        lambda: onnxshot.quantize("net.onnx", "data", settings=QUICK).report.save("net.onnx"),
        lambda: onnxshot.quantize("net.onnx", "data", settings=QUICK).report.save("data/1.npz"),
        lambda: onnxshot.quantize("net.onnx", "one.npz", settings=QUICK).report.save("one.npz"),
        lambda: onnxshot.quantize("big.onnx", "data", settings=QUICK).report.save("big.bin"),
    ],
)  # fmt: skip
def test_calls_write_over_nothing_that_they_read(call: Callable[[], object], given: Path) -> None:
    np.save("x.npy", np.load("one.npz")["x"])
    Path("st").mkdir()
    os.link("net.onnx", "st/quantized.onnx")
    before = tree(given)
    with pytest.raises(UsageError, match="itself"):
        call()
    assert tree(given) == before


def test_a_result_is_emitted_over_its_own_files_alone(given: Path) -> None:
    result = onnxshot.quantize("net.onnx", "data", settings=QUICK)
    first = result.emit("onnx", ".")
    assert result.emit("onnx", ".") == first
    onnx.save(net(3), str(first))
    with pytest.raises(UsageError, match="onnxshot has not written it"):
        result.emit("onnx", ".")


def test_a_report_is_not_saved_over_what_it_tells_of(given: Path) -> None:
    report = onnxshot.quantize("net.onnx", "data", output="a.onnx", settings=QUICK).report
    with pytest.raises(UsageError, match="a file of the result itself"):
        report.save("a.onnx")


# ---------------------------------------------------------------------- places


@pytest.mark.parametrize("option", ["-o", "--report"])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("pipe", "is no regular file"),
        ("net.onnx/x.onnx", "is no folder"),
        ("x" * 300, "File name too long"),
        ("/dev/null", "is no regular file"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    option: str, place: str, said: str, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")

    assert command("quantize", "net.onnx", "--calib", "code.py:feeds", option, place) == 2
    assert said in capsys.readouterr().err
    assert not Path("pipe").is_file()


def test_an_engine_is_known_by_the_record_that_tells_of_it(given: Path) -> None:
    """It has no place for a mark."""
    engine = Path("net.int8.engine")
    engine.write_bytes(b"an engine")
    assert "onnxshot has not written it" in foreign_artifact(engine)
    model = onnxshot.quantize("net.onnx", "data", settings=QUICK).model
    assert leave_beside(model, Path("net.int8.onnx"), {}, [engine]) == []
    assert foreign_artifact(engine) == ""
    engine.write_bytes(b"another")
    assert "onnxshot has not written it" in foreign_artifact(engine)


def test_a_cache_among_the_samples_is_not_filled(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSHOT_CACHE", "data")
    before = sorted(Path("data").iterdir())
    onnxshot.quantize("net.onnx", "data", settings=Settings(verify=False))
    assert sorted(Path("data").iterdir()) == before
    monkeypatch.setenv("ONNXSHOT_CACHE", "elsewhere")
    onnxshot.quantize("net.onnx", "data", settings=Settings(verify=False))
    assert list(Path("elsewhere").glob("*.npz"))


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a"])
def test_an_output_is_a_model_whatever_its_suffix(name: str, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ONNX itself takes a suffix for a format of text."""
    assert command("quantize", "net.onnx", "--calib", "data", "-o", name) == 0, capsys.readouterr().err
    assert command("prune", "big.onnx", "--sparsity", "0.5", "--calib", "data", "-o", name) == 0
    onnx.checker.check_model(onnx.load(name, format="protobuf"))


@pytest.mark.parametrize("name", ["a.textproto", "a.pt", "a.tflite"])
def test_a_suffix_of_another_format_is_told_before_the_work(
    name: str, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("quantize", "net.onnx", "--calib", "code.py:feeds", "-o", name) == 2
    assert "has the suffix of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prune net.onnx --sparsity 0.5", ("net.pruned.onnx",)),
        ("emit net.onnx", ("net.normalized.onnx",)),
        ("replay net.onnx q.recipe.yaml", ("net.replay.onnx",)),
        (f"{QUANTIZE} --target ort,openvino", ("net.int8.ort.onnx", "net.int8.openvino.xml")),
        ("compress net.onnx --calib data --sparsity 0.5", ("net.small.onnx",)),
    ],
)
@pytest.mark.parametrize("folder", [".", "new/", "data"])
def test_a_folder_as_output_gets_the_result_under_its_usual_name(
    text: str, names: tuple[str, ...], folder: str, given: Path
) -> None:
    if text.startswith("replay"):
        onnxshot.prune("net.onnx", sparsity=0.5, output="q.onnx", settings=QUICK)
    assert command(*text.split(), "-o", folder) == 0
    assert all((Path(folder) / name).is_file() for name in names)


@pytest.mark.parametrize(
    "call",
    [
        lambda: onnxshot.quantize("net.onnx", "data", output="new/", settings=QUICK),
        lambda: onnxshot.quantize("net.onnx", "data", settings=QUICK).save("new/"),
        lambda: onnxshot.quantize("net.onnx", "data", settings=QUICK).report.save("new/"),
        lambda: onnxshot.prune("net.onnx", sparsity=0.5, output="new/", settings=QUICK),
        lambda: onnxshot.compress("net.onnx", "data", sparsity=0.5, output="new/", settings=QUICK),
        lambda: onnxshot.emit("net.onnx", to="onnx", output="new/", settings=QUICK),
        lambda: onnxshot.calibrate("net.onnx", "data", output="new/", settings=QUICK),
    ],
)
def test_a_name_that_ends_in_a_slash_is_no_file(call: Callable[[], object], given: Path) -> None:
    with pytest.raises(UsageError, match="new/ is a folder"):
        call()
    assert not Path("new").exists()


def test_a_folder_is_no_report(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("data", ".", "new/"):
        assert command(*QUANTIZE.split(), "--report", place) == 2
        assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        f"{QUANTIZE} -o mine", f"{QUANTIZE} -o out.onnx --report mine", "prune net.onnx --sparsity 0.5 -o mine",
        "compress net.onnx --calib data --sparsity 0.5 -o mine", "emit net.onnx -o mine",
        "calibrate net.onnx --calib data -o mine.npz",
    ],
)  # fmt: skip
def test_a_file_that_is_no_result_is_not_replaced_although_it_is_named(
    text: str, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(text.split()[-1])
    place.write_text('{"models": 1}')
    before = tree(given)
    assert command(*text.split()) == 2
    assert f"{place} would replace a file that is there" in capsys.readouterr().err
    assert tree(given) == before


def test_models_reports_and_empty_files_are_replaced(given: Path) -> None:
    onnx.save(net(3), "other.net")
    Path("empty.onnx").touch()
    for place in ("other.net", "empty.onnx"):
        assert command(*QUANTIZE.split(), "-o", place, "--report", "r.html") == 0
    assert command(*QUANTIZE.split(), "-o", "r.html", "--report", "r.json") == 0
    assert command(*QUANTIZE.split(), "-o", "o.onnx", "--report", "r.json") == 0


class Told(Exception):
    """The function that `conflicts` asks whether a file may be replaced."""


def test_files_are_held_against_each_other_without_looking_at_more_than_there_is(tmp_path: Path) -> None:
    def asked(_: Path) -> str:
        raise Told

    place = tmp_path / "a"
    files = Files().writing(Write(place, "the output", asked), Write(place, "the output"))
    assert files.writes == (Write(place, "the output", asked),), "what was told first stays"
    files.check()  # nothing is there
    place.write_text("")
    with pytest.raises(Told):
        files.check()
    with pytest.raises(UsageError, match="a is the input itself"):
        files.reading(Read(place, "the input")).check()


def test_hidden_files_and_other_kinds_are_no_samples(tmp_path: Path) -> None:
    for name in (".x.npz", "x.txt", "x.npz"):
        (tmp_path / name).write_text("")

    def names() -> Iterator[str]:
        return (path.name for path in Read(tmp_path, "one of the samples", (".npz",)).files())

    assert list(names()) == ["x.npz"]
    Files((Read(tmp_path, "one of the samples", (".npz",)),), (Write(tmp_path / "x.txt", "the report"),)).check()


def test_what_stands_in_the_way_is_told_with_the_option_that_named_it(
    given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("kept").mkdir()
    shutil.copy("other.onnx", "kept/pruned.onnx")
    text = "compress net.onnx --sparsity 0.5 --calib code.py:feeds -o c.onnx --keep-stages kept"
    assert command(*text.split()) == 2
    told = capsys.readouterr().err
    assert "the kept stage kept/pruned.onnx would replace a file that is there" in told
    assert "choose another place with --keep-stages" in told


MOVING = """
import os
import numpy as np
os.chdir("theirs")
def samples():
    for i in range(6):
        yield {"x": np.load(f"{i}.npy")}
        if i == 1:
            os.chdir("deeper")
"""
SCORE = """
import os
def score(run):
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "theirs"))
    return 1.0
"""


def test_code_that_changes_the_folder_moves_no_output(given: Path) -> None:
    """Called again, it finds itself where it went to; the paths of the run mean what they meant."""
    Path("theirs/deeper").mkdir(parents=True)
    for i in range(6):
        np.save(Path("theirs", "deeper" if i > 1 else "", f"{i}.npy"), np.full((1, 16, 3, 3), i, np.float32))
    Path("moving.py").write_text(MOVING)
    before = set(tree(given))
    text = "quantize net.onnx --calib moving.py:samples -o new.onnx --report new.json"
    assert command(*text.split()) == 0
    assert Path.cwd() == given
    assert set(tree(given)) - before == {"new.onnx", "new.recipe.yaml", "new.json"}
    assert json.loads(Path("new.json").read_text())["input"] == "net.onnx", "told as it was given"


def test_a_score_that_changes_the_folder_moves_no_output(given: Path) -> None:
    Path("theirs").mkdir()
    Path("scores.py").write_text(SCORE)
    before = set(tree(given))
    assert command(*f"{QUANTIZE} -o new.onnx --max-drop 1 --eval scores.py:score".split()) == 0
    assert Path.cwd() == given
    assert set(tree(given)) - before == {"new.onnx", "new.recipe.yaml"}
