"""Make HTML and SVG from Python values. Every text is escaped, unless it is `Markup` already."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is markup already. Only made by `el` and `join`, from files of the package, or from constants."""

    __slots__ = ()


Child = str | Iterable[str]
"""A text, which is escaped unless it is `Markup`, or several texts."""
Attribute = str | float | bool | None

_VOID = frozenset({"meta", "link", "input", "br"})


def el(tag: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """An element. In names of attributes, a trailing underscore is dropped and others become dashes.

    An attribute with the value None or False is left out.
    """
    head = tag + "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{head}>")
    return Markup(f"<{head}>{join(*children)}</{tag}>")


def join(*children: Child) -> Markup:
    """Concatenate texts, each escaped unless it is `Markup`."""
    parts: list[str] = []
    for child in children:
        for text in (child,) if isinstance(child, str) else child:
            parts.append(text if isinstance(text, Markup) else html.escape(text))
    return Markup("".join(parts))


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"'
