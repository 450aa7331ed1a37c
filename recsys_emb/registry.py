"""Named plug-ins: embedding backends, CTR models and data sources.

A registry imports every module of its home package on first use, so adding a plug-in is adding one file.
Another distribution adds one through an entry point in the registry's group, e.g.

    [project.entry-points."recsys_emb.backends"]
    my_method = "my_package.my_module:MyBackend"

It is imported when it is asked for by name, so one that is broken fails only where it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from recsys_emb.errors import UserError
from recsys_emb.option_docs import document

T = TypeVar("T", bound=type)

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class Registry(Generic[T]):
    """Plug-in classes of one kind, by name.

    Args:
        kind: what an entry is called in messages, e.g. ``"backend"``.
        package: dotted name of the package whose modules register the built-in entries.
        group: entry-point group through which other distributions add theirs.
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind = kind
        self._package = package
        self._group = group
        self._entries: dict[str, T] = {}
        self._unlisted: set[str] = set()
        self._points: dict[str, EntryPoint] = {}
        self._loaded = False

    def register(self, name: str, listed: bool = True) -> Callable[[T], T]:
        """Class decorator; sets ``cls.name``. Raises ValueError on a bad or taken name.

        Args:
            name: how a user, a run or an artifact calls it.
            listed: ``names()`` has it; false for what others make and only ``get`` finds, to open it again.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{self.kind} name {name!r}: use lower-case letters, digits, '_' and '-'")

        def add(cls: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and taken is not cls:
                raise ValueError(f"{self.kind} {name!r} is already registered by {taken.__module__}")
            cls.name = name  # type: ignore[attr-defined]
            self._entries[name] = cls
            if not listed:
                self._unlisted.add(name)
            return cls

        return add

    def get(self, name: str) -> T:
        """The class registered as ``name``.

        Raises:
            UserError: there is none, with a list of what there is, or another package's cannot be loaded.
        """
        self._load()
        if name in self._points:
            self._import(self._points[name])
        if name not in self._entries:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"unknown {self.kind} {name!r}{hint}; available: {', '.join(self.names())}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All registered and listed names, sorted."""
        self._load()
        return sorted((self._entries.keys() | self._points.keys()) - self._unlisted)

    def describe(self, name: str) -> dict[str, Any]:
        """``name``, ``summary`` and ``options`` (keys of its Config) of an entry; why it cannot be loaded, if so."""
        try:
            cls = self.get(name)
        except UserError as error:
            return {"name": name, "summary": str(error), "options": []}
        return {"name": name, "summary": getattr(cls, "summary", ""), "options": [o["key"] for o in self.options(name)]}

    def options(self, name: str) -> list[dict[str, Any]]:
        """What can be set of an entry: ``key``, ``allowed``, ``default`` and ``description`` of each option."""
        cls = self.get(name)
        return document(cls.Config, {"name", "embedding_dim", *getattr(cls, "fitted", ())})  # type: ignore[attr-defined]

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self._package}.{module.name}")
        self._points = {point.name: point for point in entry_points(group=self._group)}
        self._loaded = True

    def _import(self, point: EntryPoint) -> None:
        """Loads another package's plug-in, once."""
        package = f" of {point.dist.name}" if point.dist is not None else ""
        where = f"{self.kind} {point.name!r}: entry point {point.value}{package}"
        try:
            loaded = point.load()
            if not isinstance(loaded, type):
                raise TypeError("it is no class")
            self.register(point.name)(loaded)  # type: ignore[arg-type]
        except Exception as error:  # whatever happens while somebody else's module is imported
            raise UserError(f"{where} cannot be loaded ({type(error).__name__}: {error})") from None
