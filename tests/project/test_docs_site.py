"""The site of docs/: every page is in its menu, every link leads somewhere, and nothing is loaded from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from doc_pages import DOCS
from fixture_data import ROOT

MENU = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
OURS = re.compile(r"^(?!https?:|mailto:|data:|javascript:).+")


class Page(HTMLParser):
    """The links, files and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loaded, self.anchors = [""], list[str](), {"", "__top"}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.anchors |= {known[name] for name in ("id", "name") if name in known}
        if tag == "a" and "href" in known:
            self.links.append(known["href"])
        if (tag in ("script", "img") and "src" in known) or (tag == "link" and known.get("rel") == "stylesheet"):
            self.loaded.append(known.get("src") or known["href"])


def build(top: Path, out: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=top, env=quiet, capture_output=True, text=True)


def test_every_page_is_in_the_menu() -> None:
    assert sorted(re.findall(r": ([\w-]+\.md)$", MENU, re.MULTILINE)) == sorted(
        ["index.md", *(page.removeprefix("docs/") for page in DOCS)]
    )


@pytest.mark.slow
def test_links_of_the_built_site_lead_somewhere(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = {path: Page(path) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > len(DOCS)
    for path, page in pages.items():
        assert all(OURS.match(link) for link in page.loaded), path
        for link in filter(OURS.match, page.links + page.loaded):
            file, anchor = urldefrag(link)
            to = (path.parent / unquote(file)).resolve() if file else path
            to = to / "index.html" if to.is_dir() else to
            assert to.is_file(), f"{path}: {link}"
            assert to not in pages or unquote(anchor) in pages[to].anchors, f"{path}: {link}"


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails(tmp_path: Path) -> None:
    for name in ("docs", "fixtures", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.onnx", "*.png", "*.wav"))
    shutil.copytree(ROOT / "onnxshot" / "report", tmp_path / "onnxshot" / "report")
    for path in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml", ROOT / "LICENSE"):
        shutil.copyfile(path, tmp_path / path.name)
    shutil.copyfile(ROOT / "docs" / "report.png", tmp_path / "docs" / "report.png")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    with (tmp_path / "docs" / "limits.md").open("a", encoding="utf-8") as file:
        file.write("\nSee [there](../examples/nothing.py) and [here](targets.md#nowhere).\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "nothing.py" in done.stderr
    assert "nowhere" in done.stderr
