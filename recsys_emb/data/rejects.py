"""Malformed rows: written to ``rejected.tsv``, and an error when they are too many."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from recsys_emb.data.sources.base import Rejected
from recsys_emb.errors import UserError

SHOWN = 5


class RejectLog:
    """Writes ``rejected.tsv`` (columns file, line, reason, text) as rows are met.

    Args:
        path: the file; None when rows are only counted.
        limit: largest share of all rows that may be rejected.
        kept_at: where the file is copied to when they are more, because the folder of ``path`` then goes.

    Raises:
        UserError: the limit is no share.
    """

    def __init__(self, path: Path | None, limit: float, kept_at: Path | None = None) -> None:
        if not 0 <= limit <= 1:
            raise UserError(f"--max-rejected {limit:g}: must be between 0 and 1")
        self._limit, self._kept_at = limit, kept_at
        self._path = Path(os.devnull) if path is None else path
        self._file = open(self._path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115  closed by __exit__
        self._file.write("file\tline\treason\ttext\n")
        self._first: list[Rejected] = []
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, rows: Iterable[Rejected]) -> None:
        for row in rows:
            self.count += 1
            if len(self._first) < SHOWN:
                self._first.append(row)
            text = row.text.replace("\\", "\\\\").replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")
            self._file.write(f"{row.file}\t{row.line}\t{row.reason}\t{text}\n")

    def check(self, good: int, *, done: bool) -> None:
        """Raises UserError when too many rows were rejected; before the end, only when most rows are."""
        limit = self._limit if done else max(self._limit, 0.5)
        total = good + self.count
        if not self.count or self.count <= limit * total:
            return
        where = ""
        if self._kept_at is not None:
            self._file.flush()
            shutil.copyfile(self._path, self._kept_at)
            where = f" (all in {self._kept_at})"
        first = "; ".join(f"{r.file} line {r.line}: {r.reason}" for r in self._first)
        remedy = next((f"; {r.remedy}" for r in self._first if r.remedy), "")
        raise UserError(
            f"{self.count} of {total} rows{'' if done else ' so far'} are malformed, more than --max-rejected "
            f"{self._limit:g}: {first}{'; ...' if self.count > len(self._first) else ''}{where}{remedy}"
        )
