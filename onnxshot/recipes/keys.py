"""Check keys and values of recipes and manifests; errors name a key by its path, such as stages[0].prune.sparsity."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, TypeGuard

from onnxshot.errors import UsageError
from onnxshot.files.messages import shown
from onnxshot.wording import OWNERS

KeyPath = tuple[Any, ...]
"""Keys and indices from the top of a file, such as ("stages", 0, "prune", "sparsity"); YAML keys may have any type."""
Check = tuple[str | KeyPath, object, bool, str]
"""(key or path, value found, whether it is right, what is expected)."""

_PLAIN = re.compile(r"[A-Za-z_][\w-]{0,99}")


class BadKey(UsageError):
    """A key or its value is wrong.

    Attributes:
        path: path of the key, as far as it is known where the error is raised; `under` extends it at the front.
        said: what is wrong, as the words that follow the path in the message.
        other: path of a second key, which ends the message; empty where there is none.
    """

    def __init__(self, path: Sequence[Any], said: str, hint: str = "", other: Sequence[Any] = ()) -> None:
        self.path, self.said, self.other = tuple(path), said, tuple(other)
        super().__init__(" ".join(filter(None, (spelled(self.path), said, spelled(self.other)))), hint)

    def under(self, *above: Any) -> BadKey:
        """The same error, with the path of the enclosing keys put in front of its paths."""
        return BadKey((*above, *self.path), self.said, self.hint, (*above, *self.other) if self.other else ())


def spelled(path: Sequence[Any]) -> str:
    """A path as text, such as stages[0].prune.layers['conv*']."""
    text = ""
    for key in path:
        plain = isinstance(key, str) and _PLAIN.fullmatch(key)
        text += f"{'.' if text else ''}{key}" if plain else f"[{shown(key)}]"
    return text


def refuse(checks: Iterable[Check]) -> None:
    """Raise BadKey for the first check that fails."""
    for key, found, fits, wanted in checks:
        if not fits:
            raise BadKey((key,) if isinstance(key, str) else key, f"is {shown(found)}", wanted)


def refuse_unknown(given: Iterable[Any], known: Sequence[str]) -> None:
    """Raise BadKey for the first key that is not known. The hint names a key that is nearly the same, or its place."""
    for key in given:
        if key not in known:
            if key in OWNERS:
                verb = "tune" if OWNERS[key] == "Goal" else "quantize"
                raise BadKey((key,), "is no key", f"give it as [[{verb} MODEL calib=DATA {key}=VALUE]]")
            near = get_close_matches(str(key), known, n=1, cutoff=0.75)
            where = f"did you mean {near[0]!r}? " if near else ""
            raise BadKey((key,), "is no key", f"{where}keys: {', '.join(known)}")


def texts(key: str, value: object, what: str = "globs") -> Check:
    """A check that a value is a tuple of strings; it names the first item that is not."""
    for i, text in enumerate(value if isinstance(value, tuple) else ()):
        if not isinstance(text, str):
            return (key, i), text, False, f"text: {key} is a list of {what}"
    return key, value, isinstance(value, tuple), f"a list of {what}"


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that fits a float; booleans are not numbers."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
