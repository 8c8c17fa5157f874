"""Names of tensors that edits removed, and the names of the tensors that their layers compute now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Renamed(dict[str, str]):
    """Name of a removed tensor -> name of the tensor that its layer computes now. Users know the former."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._behind: dict[str, set[str]] = {}  # name of today -> names that lead to it, some of which lead elsewhere
        for old, now in (names or {}).items():
            self[old] = now

    def __setitem__(self, old: str, now: str) -> None:
        super().__setitem__(old, now)
        self._behind.setdefault(now, set()).add(old)

    def __ior__(self, names: Any) -> Renamed:  # type: ignore[override,misc]
        for old, now in dict(names).items():
            self[old] = now
        return self

    def follow(self, gone: Iterable[str], now: str) -> None:
        """Let names lead to `now`, and all names that led to one of them."""
        for name in gone:
            for old in sorted(self._behind.pop(name, ())):
                if self.get(old) == name:
                    self[old] = now
            self[name] = now
