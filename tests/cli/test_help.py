"""What `--help` shows: panels that fit a screen, every option in one, and examples that the parser takes."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from fixture_data import ROOT

from onnxshot.cli import app as cli
from onnxshot.cli import help as pages
from onnxshot.cli.completion import FORMATS
from onnxshot.cli.examples import EXAMPLES, PAGES
from onnxshot.targets import RUNTIMES

GROUP: Any = typer.main.get_command(cli.app)
SCREEN = 26  # lines of a panel with its frame, at most
NAME = re.compile(r"--[a-z][a-z-]+")


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", found) for inner, found in _commands(command))
        else:
            yield name, command


COMMANDS = dict(_commands(GROUP))


def shown(words: list[str], capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, columns: int = 80) -> str:
    patch.setenv("COLUMNS", str(columns))
    patch.setattr(sys, "argv", ["onnxshot", *words])
    with pytest.raises(SystemExit):
        cli.main()
    return capsys.readouterr().out


def panels(text: str) -> dict[str, list[str]]:
    """The lines inside each panel, by its title."""
    return {
        title.strip(" ─"): [line.strip("│ ") for line in body.splitlines()]
        for title, body in re.findall(r"╭─([^╮]*)╮\n(.*?)\n╰", text, re.DOTALL)
    }


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_options_stand_in_panels_that_fit_a_screen(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown([*name.split(), "--help"], capsys, monkeypatch, columns)
    assert max(map(len, text.splitlines())) <= columns
    found = panels(text)
    assert list(found) == [panel for panel in ("Arguments", *pages.PANELS) if panel in found]
    assert max(map(len, found.values())) + 2 <= SCREEN
    assert not re.search(r"<\w+>", text), "a column of types"
    listed = [option for lines in found.values() for line in lines for option in NAME.findall(line.split("  ")[0])]
    for param in COMMANDS[name].params:
        if param.param_type_name == "option":
            assert param.rich_help_panel in pages.PANELS, param.name
            names = [o for o in (*param.opts, *param.secondary_opts) if o.startswith("--")]
            assert sum(listed.count(option) for option in names) in (1, 1 + (param.default is None)), param.name
            assert param.help.endswith((".", ".\n")), param.name
            assert param.is_flag or param.count or param.metavar, f"{param.name}: what stands for its value"
        else:
            assert param.metavar in text


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_takes_at_most_two_lines(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for title, lines in panels(shown([*name.split(), "--help"], capsys, monkeypatch)).items():
        starts = [i for i, line in enumerate(lines) if line.startswith("--") or title == "Arguments"]
        longest = max(b - a for a, b in zip(starts, [*starts[1:], len(lines)], strict=True))
        assert longest <= 2, (title, lines)


def test_ten_options_of_quantize_come_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(["quantize", "--help"], capsys, monkeypatch)
    first = [line for line in panels(text)[pages.MOST_USED] if line.startswith("--")]
    assert len(first) == len(pages.FIRST["quantize"]) == 10
    assert first[0].startswith("--calib DATA")
    for command, names in pages.FIRST.items():
        assert set(names) <= {param.name for param in COMMANDS[command].params}


def test_the_short_help_is_the_first_panel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    brief = shown(["quantize", "-h"], capsys, monkeypatch)
    assert list(panels(brief)) == ["Arguments", pages.MOST_USED]
    assert "onnxshot quantize --help" in brief
    assert list(panels(shown(["bench", "-h"], capsys, monkeypatch))) == ["Arguments", "Data", "Machine", "Messages"]


@pytest.mark.parametrize("columns", [80, 120])
def test_commands_are_grouped_by_what_people_do(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(["--help"], capsys, monkeypatch, columns)
    found = panels(text)
    assert list(found) == [*pages.GROUPS, "Options"]
    listed = [line.split()[0] for group in pages.GROUPS for line in found[group]]
    assert sorted(listed) == sorted(GROUP.commands), "each takes one line"
    assert max(map(len, text.splitlines())) <= columns


def test_every_command_has_examples_and_pages() -> None:
    assert set(EXAMPLES) == {"onnxshot", *GROUP.commands}
    for named in PAGES.values():
        assert all((ROOT / page).is_file() for page in named.split(", "))


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for _, line in lines])
def test_an_example_is_one_that_the_command_takes(line: str) -> None:
    assert len(line) <= 78
    assert any(line == known for _, known in EXAMPLES[line.split()[1]]) or line in dict(
        (known, words) for words, known in EXAMPLES["onnxshot"]
    )
    words = shlex.split(line)[1:]
    name = next(n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS)
    COMMANDS[name].make_context(name, words[len(name.split()) :])  # raises for a wrong option, value or order


def completed(line: str) -> list[str]:
    env = {**os.environ, "_ONNXSHOT_COMPLETE": "complete_bash", "COMP_WORDS": line}
    env |= {"COMP_CWORD": str(len(line.split(" ")) - 1)}
    code = "import sys; sys.argv[0] = 'onnxshot'; from onnxshot.cli.app import entry; entry()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("onnxshot quantize net.onnx --target open", ["openvino"]),
        ("onnxshot quantize net.onnx --target ort,tens", ["ort,tensorrt"]),
        ("onnxshot quantize net.onnx --preset imagenet", ["imagenet", "imagenet-half"]),
        ("onnxshot qua", ["quantize"]),
    ],
)
def test_the_shell_completes_values(line: str, expected: list[str]) -> None:
    assert completed(line) == expected


def test_what_is_completed_is_what_the_program_takes() -> None:
    assert {"onnx", *RUNTIMES} == set(FORMATS)
    for name, command in COMMANDS.items():
        for param in command.params:
            complete = getattr(param, "_custom_shell_complete", None)
            if complete is not None and isinstance(param.default, str):
                assert param.default in [item.value for item in complete(None, param, "")], f"{name} {param.name}"
