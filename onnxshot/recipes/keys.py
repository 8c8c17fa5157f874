"""Keys of recipes and manifests by their paths, and what is said of one that is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from onnxshot.errors import UsageError
from onnxshot.files.messages import shown

KeyPath = tuple[Any, ...]
"""Keys and numbers from the top of a file, such as ("stages", 0, "prune", "sparsity"); YAML has keys of any type."""
Check = tuple[str | KeyPath, object, bool, str]
"""(key or path, what was found, whether it fits, what is wanted)."""

_PLAIN = re.compile(r"[A-Za-z_][\w-]{0,99}")


class BadKey(UsageError):
    """A key, or its value, is not what it must be.

    Attributes:
        path: of the key, as far as it is known where the error is raised; `under` puts more in front.
        said: what is wrong, as it goes on behind the path.
        other: the path of another key that the sentence ends with; empty where it names none.
    """

    def __init__(self, path: Sequence[Any], said: str, hint: str = "", other: Sequence[Any] = ()) -> None:
        self.path, self.said, self.other = tuple(path), said, tuple(other)
        super().__init__(" ".join(filter(None, (spelled(self.path), said, spelled(self.other)))), hint)

    def under(self, *above: Any) -> BadKey:
        """The same of a key that stands further down: above is the path of the keys and values it was found in."""
        return BadKey((*above, *self.path), self.said, self.hint, (*above, *self.other) if self.other else ())


def spelled(path: Sequence[Any]) -> str:
    """A path as text, such as stages[0].prune.layers['conv*']."""
    text = ""
    for key in path:
        plain = isinstance(key, str) and _PLAIN.fullmatch(key)
        text += f"{'.' if text else ''}{key}" if plain else f"[{shown(key)}]"
    return text


def refuse(checks: Iterable[Check]) -> None:
    """Raise BadKey for the first that does not fit."""
    for key, found, fits, wanted in checks:
        if not fits:
            raise BadKey((key,) if isinstance(key, str) else key, f"is {shown(found)}", wanted)


def refuse_unknown(given: Iterable[Any], known: Sequence[str]) -> None:
    """Raise BadKey for the first key that is none."""
    for key in given:
        if key not in known:
            raise BadKey((key,), "is no key", f"keys: {', '.join(known)}")


def texts(key: str, value: object, what: str = "globs") -> Check:
    """A check that it is a tuple of texts, which names the first that is none."""
    for i, text in enumerate(value if isinstance(value, tuple) else ()):
        if not isinstance(text, str):
            return (key, i), text, False, f"text: {key} is a list of {what}"
    return key, value, isinstance(value, tuple), f"a list of {what}"


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number, and no truth value; of integers one that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
