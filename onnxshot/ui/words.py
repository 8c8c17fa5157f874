"""Say an error's message and hint, which name options of the command line, in the words of the page."""

from __future__ import annotations

import re

_OWN = (  # an option of the command line -> where the page has it; a value that follows stays
    (r"--calib(?: DATA)?\b", "the samples"),
    (r"--preset\b", "the preset"),
    (r"(?:give )?--tokenizer(?: [A-Z./]+)?", "drop tokenizer.json with the samples"),
    (r"--length(?: N)?\b", "the box 'Tokens of a text'"),
    (r"--target\b", "the target"),
    (r"--effort\b", "effort"),
    (r"--search-time\b", "the search time"),
    (r"--min-sqnr\b", "a least SQNR of"),
    (r"--accept\b", "the box 'Accept a result below the floor'"),
    (r"(?:pass|give) (?=--memory)", "start onnxshot ui with "),
)
_FOLDER = re.compile(r"(?<![\w./])(?:model|calib)/(?=[^\s/])")  # of uploaded files, which the user named without it
_OTHER = re.compile(r"(?<!ui with )(?<![\w-])--[a-z][a-z-]+")


def page_words(text: str) -> str:
    """The text in the words of the page; options that it does not have are said to be those of the command line."""
    text = _FOLDER.sub("", text)
    for option, words in _OWN:
        text = re.sub(option, words, text)
    if _OTHER.search(text) and "onnxshot" not in text:
        text += " (options of onnxshot quantize on the command line, which this page does not have)"
    return text
