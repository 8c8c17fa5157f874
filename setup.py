"""The README as a package index shows it: links to files of the project lead to its address, or are words.

The address is that of the repository whose workflow builds (GITHUB_SERVER_URL, GITHUB_REPOSITORY, GITHUB_REF_NAME),
else `Source` of `[project.urls]` in pyproject.toml. Everything else is said in pyproject.toml.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def address(environment: Mapping[str, str]) -> str:
    """The address of the project's files, with {kind} for blob or raw; empty where none is known."""
    known = [environment.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "REF_NAME")]
    if all(known):
        return "{}/{}/{{kind}}/{}/".format(*known)
    urls = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"].get("urls", {})
    return f"{urls['Source'].rstrip('/')}/{{kind}}/HEAD/" if "Source" in urls else ""


def absolute(text: str, base: str) -> str:
    """The text with absolute links; without a base, links are their words, and pictures are left out."""

    def link(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if not base:
            return "" if picture else words
        return f"{picture}[{words}]({base.format(kind='raw' if picture else 'blob')}{path})"

    return LINK.sub(link, text)


if __name__ == "__main__":
    readme = absolute((HERE / "README.md").read_text("utf-8"), address(os.environ))
    setup(long_description=readme, long_description_content_type="text/markdown")
