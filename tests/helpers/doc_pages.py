"""The pages of docs/ and the README, and their fenced blocks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = {page: (ROOT / page).read_text("utf-8") for page in ("README.md", *DOCS)}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    return [(page, body) for page, text in PAGES.items() for found, body in FENCE.findall(text) if found == language]


def yaml_of(page: str, key: str) -> str:
    (found,) = (text for at, text in blocks("yaml") if at == page and f"{key}:" in text)
    return found


def prose(text: str) -> str:
    return FENCE.sub("", text)


def lines_of(body: str) -> list[str]:
    """The lines of a block; those that end in a backslash go on."""
    return re.sub(r"\\\n\s*", "", body).splitlines()


def code_in_sentences(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands_of(page: str) -> Iterator[list[str]]:
    """The words behind `onnxshot` of every command on a page: lines of blocks, and code in sentences."""
    lines = [line for _, body in FENCE.findall(PAGES[page]) for line in lines_of(body)]
    lines += re.findall(r"`(onnxshot [^`]*)`", prose(PAGES[page]))
    for line in lines:
        if found := re.search(r"(?:^|/)onnxshot (?!-)(.*)", line):
            yield shlex.split(found[1], comments=True)
