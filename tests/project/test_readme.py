"""The README and the pages of docs/ hold what the program holds, their examples run, and their links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from doc_pages import DOCS, FENCE, PAGES, ROOT, blocks, code_in_sentences, commands_of, lines_of, prose, yaml_of
from fixture_data import HELPERS

import onnxshot
from onnxshot.batch.manifest import load_manifest
from onnxshot.calibration.preset import load_preset, preset_names
from onnxshot.calibration.range_methods import METHODS
from onnxshot.cli.app import app
from onnxshot.recipes.files import load_stages
from onnxshot.recipes.stages import PruneStage, kind_of
from onnxshot.targets import TARGETS

BESIDE = ("fixtures/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINKING = {**PAGES, **{page: (ROOT / page).read_text("utf-8") for page in BESIDE}}
# A block of another language would be one that no test here looks at.
LANGUAGES = {"", "sh", "python", "yaml", "text"}
# Where a reader looks for a name.
OF_PAGES = {
    "docs/command-line.md": [*METHODS, "ONNXSHOT_CACHE", "ONNXSHOT_DEBUG"],
    "docs/calibration.md": preset_names(),
    "docs/targets.md": list(TARGETS),
}
FIELDS = [
    (onnxshot.Goal, "docs/python.md"),
    (onnxshot.Recipe, "docs/python.md"),
    (onnxshot.Settings, "docs/python.md"),
    (onnxshot.Report, "docs/reports.md"),
]


def named(examples: list[tuple[str, str]]) -> list[Any]:
    """Parameters of a test: the texts, each called after its page."""
    return [pytest.param(text, id=f"{page}-{number}") for number, (page, text) in enumerate(examples)]


def anchors(text: str) -> list[str]:
    """What headings are called in links, as GitHub makes it of them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(text)))


def test_blocks_are_of_languages_that_are_tested() -> None:
    for page, text in PAGES.items():
        assert {language for language, _ in FENCE.findall(text)} <= LANGUAGES, page
        assert text.count("\n```") == 2 * len(FENCE.findall(text)), page


@pytest.mark.parametrize("code", named(blocks("python")))
def test_examples_run(code: str, tmp_path: Path) -> None:
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    environment = dict(os.environ)
    if "torch" in code and find_spec("torch") is None:
        environment["PYTHONPATH"] = str(HELPERS / "stand_ins")
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_examples_are_where_a_reader_looks_for_them() -> None:
    pages = {page for page, _ in blocks("python")}
    assert pages >= {"README.md", "docs/python.md", "docs/extending.md"}


@pytest.mark.parametrize("text", named(blocks("yaml")))
def test_yaml_is_a_preset_a_manifest_or_a_recipe(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    (tmp_path / "models").mkdir()
    for name in ("net", "text-a", "text-b"):
        (tmp_path / "models" / f"{name}.onnx").touch()
    if "kind:" in text:
        assert load_preset(str(path)) is not None
    elif "models:" in text:
        assert load_manifest(path).entries
    else:
        assert load_stages(path).stages


def test_preset_example_loads(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(yaml_of("docs/calibration.md", "size"))
    preset = load_preset(str(tmp_path / "p.yaml"))
    assert preset is not None
    assert preset.size == (256, 192)


def test_recipe_example_loads(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml_of("docs/recipes.md", "stages"))
    stages = load_stages(tmp_path / "r.yaml", {"sparsity": "0.6"}).stages
    assert [kind_of(stage) for stage in stages] == ["shrink", "prune", "quantize"]
    assert isinstance(stages[1], PruneStage)
    assert stages[1].sparsity == 0.6


def test_commands_are_single_lines_and_ci_runs_the_second() -> None:
    assert [page for page, _ in blocks("sh")] == ["README.md"] * 2
    commands = [text.removesuffix("\n") for _, text in blocks("sh")]
    assert not any("\n" in command for command in commands)
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    """Every command by its full name, those of groups included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", found) for inner, found in _commands(command))
        else:
            yield name, command


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_are_those_of_the_program(page: str) -> None:
    for words in commands_of(page):
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
        assert name, f"{page}: there is no command {words[0]}"
        command = COMMANDS[name]
        # Raises for an option that is not there; values are placeholders such as DATA, so none is looked at.
        command.make_parser(command.context_class(command)).parse_args(words[len(name.split()) :])


@pytest.mark.slow
def test_the_five_uses_run_in_a_clone(tmp_path: Path) -> None:
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    (tmp_path / "manifest.yaml").write_text(yaml_of("README.md", "models"))
    uses = PAGES["README.md"].partition("\n## Five uses\n")[2].partition("\n## ")[0]
    assert uses.count("\n**") == 5
    lines = [line for language, body in FENCE.findall(uses) if not language for line in lines_of(body)]
    assert len(lines) == 6
    for words in (shlex.split(line, comments=True) for line in lines):
        command = [sys.executable, "-m", "onnxshot", *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        written = [value for option, value in pairwise(words) if option in ("-o", "--report", "--bundle")]
        assert all((tmp_path / path).stat().st_size for path in written)
    assert (tmp_path / "out" / "batch" / "summary.json").is_file()
    assert (tmp_path / "out" / "language-q4" / "onnx" / "model_q4.onnx").is_file()


def test_every_command_is_in_the_table_of_commands() -> None:
    table = PAGES["docs/command-line.md"].partition("\n## Commands\n")[2].partition("\n## ")[0]
    assert [name for name in COMMANDS if f"`onnxshot {name}" not in table] == []


def test_the_table_of_other_tools_is_that_of_the_measurement() -> None:
    """The rows of the README are those of docs/fresh-models.md, under the versions that were measured."""
    rows = [row for row in PAGES["README.md"].splitlines() if row.count(" / ") >= 5]
    source = PAGES["docs/fresh-models.md"]
    versions = re.findall(r"[\w-]+ [\d.]+\d", source.partition("\nOther tools: ")[2].partition("\n")[0])
    assert len(versions) == 4
    names = {"NNCF": "nncf", "Neural Compressor": "onnx-neural-compressor", "Quark": "amd-quark"}
    measured = dict(line[2:].split(" | ", 1) for line in source.splitlines() if line.count(" / ") >= 5)
    assert len(rows) == 5
    for row in rows:
        name, figures = row[2:].split(" | ", 1)
        package = name.split(",")[0]
        assert package.lower() in versions
        kept = [key for key, values in measured.items() if values == figures]
        assert kept and all(names.get(key, key.split(",")[0]) == package.lower().split(" ")[0] for key in kept)


PARAMETERS = [parameter for command in COMMANDS.values() for parameter in command.params]
OPTIONS = {option for parameter in PARAMETERS for option in (*parameter.opts, *parameter.secondary_opts)}
NO_MODULES = {".recipe", ".runs", ".version", ".notes", ".readers"}  # metadata, loggers, entry points
OF_TYPER = {"--help", "--install-completion", "--show-completion", "--version"}


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"docs/migrating.md"}))  # that page is about other programs
def test_options_in_sentences_are_those_of_the_program_or_of_a_script_that_the_page_names(page: str) -> None:
    scripts = re.findall(r"(?:benchmarks|docs/screens)/\w+\.py", PAGES[page])
    theirs = {option for name in scripts for option in re.findall(r"--[a-z-]+", (ROOT / name).read_text("utf-8"))}
    for code in code_in_sentences(PAGES[page]):
        if not re.match(r"--?[a-z]", code):
            continue  # options of other programs stand behind the program's name
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code):
            assert option in OPTIONS | OF_TYPER | theirs, f"{page}: {code}"


@pytest.mark.parametrize("page", PAGES)
def test_names_of_python_in_sentences_are_there(page: str) -> None:
    for code in code_in_sentences(PAGES[page]):
        for name in re.findall(r"(?<![\w/.'-])onnxshot((?:\.\w+)+)", code):
            if name in NO_MODULES or name.isupper():
                continue
            found: Any = onnxshot
            for part in name[1:].split("."):
                found = getattr(found, part, None) or import_module(f"{found.__name__}.{part}")
            assert found is not None, f"{page}: {code}"


@pytest.mark.parametrize("page", LINKING)
def test_extras_that_pages_install_are_declared(page: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for named_extras in re.findall(r"(?:onnxshot|['\" ]\.)\[([a-z,-]+)\]", LINKING[page]):
        assert set(named_extras.split(",")) <= set(extras), f"{page}: {named_extras}"


def test_every_option_is_in_the_table() -> None:
    told: dict[str, str] = {}
    for row in PAGES["docs/command-line.md"].splitlines():
        if row.startswith("| `-"):
            _, names, commands, *_ = row.split("|")
            told |= dict.fromkeys(re.findall(r"--[a-z-]+", names), commands)
    for name, command in COMMANDS.items():
        for option in (o for p in command.params for o in p.opts if o.startswith("--")):
            assert name in told[option] or "all" in told[option], f"{name} {option}"


@pytest.mark.parametrize(("kind", "page"), FIELDS)
def test_every_field_is_on_its_page(kind: type, page: str) -> None:
    assert [f.name for f in fields(kind) if f"`{f.name}`" not in PAGES[page]] == []


@pytest.mark.parametrize("page", OF_PAGES)
def test_every_name_is_on_its_page(page: str) -> None:
    assert [name for name in OF_PAGES[page] if f"`{name}`" not in PAGES[page]] == []


@pytest.mark.parametrize("page", LINKING)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for link in links(LINKING[page]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link


@pytest.mark.parametrize("page", sorted(LINKING.keys() - {"CHANGELOG.md"}))
def test_headings_of_a_page_differ(page: str) -> None:
    found = anchors(LINKING[page])
    assert len(found) == len(set(found))


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 130
    assert set(DOCS) <= set(links(PAGES["README.md"]))


def test_the_tests_and_benchmarks_that_pages_name_are_there() -> None:
    for page, text in PAGES.items():
        for name in re.findall(r"`(test_\w+\.py)`", text):
            assert list((ROOT / "tests").rglob(name)), f"{page}: {name}"
        for name in re.findall(r"benchmarks/\w+\.py", text):
            assert (ROOT / name).is_file(), f"{page}: {name}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/extending.md"])
def test_the_files_that_pages_on_the_code_name_are_there(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    named_files = re.findall(r"(?<![\w/])(?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|yaml|txt)\b", text)
    assert named_files
    for name in named_files:
        assert (ROOT / name).exists() or (ROOT / "onnxshot" / name).exists(), f"{page}: {name}"


def test_the_layers_are_those_that_are_checked() -> None:
    """The picture of docs/architecture.md lists the folders in the order of the contract."""
    (contract,) = (
        c for c in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if c["type"] == "layers"
    )  # fmt: skip
    layers = [re.split(r" [|:] ", layer) for layer in contract["layers"] if not layer.startswith("__")]
    picture = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("```text\n")[1].split("\n```")[0]
    drawn = [line.split("  ")[0].split() for line in picture.splitlines()]
    assert [set(names) for names in drawn] == [set(names) for names in layers]
