"""What the site needs besides docs/: the README as its first page, and the files of the project that pages link to.

A page of the project stands at project/PATH on the site, and so does a file such as an example. So all links work both
in the repository and on the site, and `mkdocs build --strict` fails for one that leads nowhere.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "fixtures/README.md")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the project, and the files that any page links to."""
    wanted = set[str]()
    for file in list(files.documentation_pages()):
        wanted |= linked(file.content_string, f"docs/{file.src_uri}")
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        wanted |= linked(text, page)
        files.append(File.generated(config, place(page), content=moved(text, page)))
    for path in sorted(wanted - set(PAGES)):
        if (ROOT / path).is_file() and not path.startswith("docs/"):
            files.append(File.generated(config, place(path), content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links from a page of docs/ to files of the project into links of the site."""
    if page.file.generated_by:
        return markdown
    return moved(markdown, f"docs/{page.file.src_uri}")


def place(path: str) -> str:
    """Where a file of the project stands on the site. path: from the top of the project."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"project/{path}"


def linked(text: str, page: str) -> set[str]:
    """The files that a page links to, from the top of the project."""
    return {target(page, found[0]) for found in LINK.findall(text)}


def moved(text: str, page: str) -> str:
    """The text of a page, with links between places of the site."""
    folder = posixpath.dirname(place(page))

    def link(found: re.Match[str]) -> str:
        to = posixpath.relpath(place(target(page, found[1])), folder or ".")
        return f"]({to}{found[2] or ''})"

    return LINK.sub(link, text)


def target(page: str, link: str) -> str:
    """The file that a link of a page leads to, from the top of the project."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
