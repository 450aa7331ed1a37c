"""Which ids have a row of their own, and where it is, in as few bytes as the ids allow."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Kind = Literal["all", "bitmap", "list"]


class RowIndex(nn.Module):
    """Rows of K out of N ids, numbered in the order of the ids. The cheapest of three forms:

    all:     K = N, nothing is stored.
    bitmap:  a bit for each id, int64 [N / 64], and how many ids have a row before each word, int32 [N / 64]:
             3/16 N bytes.
    list:    the ids that have a row, rising, int32 [K] (int64 from 2^31 ids on); binary search.

    Both beat a remap of N int32.

    Args:
        ids: N.
        rows: K.
        device: where the buffers are made. The first ids have the rows until ``fill`` says which.
    """

    words: Tensor
    ranks: Tensor
    listed: Tensor

    def __init__(self, ids: int, rows: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.ids, self.rows = ids, rows
        self.kind = kind_of(ids, rows)
        if self.kind == "bitmap":
            self.register_buffer("words", torch.zeros(_words(ids), dtype=torch.int64, device=device))
            self.register_buffer("ranks", torch.zeros(_words(ids), dtype=torch.int32, device=device))
        elif self.kind == "list":
            self.register_buffer("listed", torch.zeros(rows, dtype=_list_dtype(ids), device=device))
        if any(not buffer.is_meta for buffer in self.buffers()):
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gives the first ids the rows."""
        self.fill(torch.arange(self.rows))

    def fill(self, kept: Tensor) -> None:
        """``kept`` int64 [K]: the ids that have a row, rising."""
        if len(kept) != self.rows:
            raise ValueError(f"an index of {self.rows} rows cannot take {len(kept)} ids")
        if self.kind == "list":
            self.listed.copy_(kept)
        elif self.kind == "bitmap":
            bits = np.zeros(64 * _words(self.ids), dtype=bool)
            bits[kept.cpu().numpy()] = True
            self.words.copy_(torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int64)))
            filled = torch.from_numpy(bits.reshape(-1, 64).sum(1))
            self.ranks.copy_(filled.cumsum(0) - filled)

    def kept(self) -> Tensor:
        """The ids that have a row, int64 [K], rising."""
        if self.kind == "all":
            return torch.arange(self.ids)
        if self.kind == "list":
            return self.listed.long()
        bits = np.unpackbits(self.words.cpu().numpy().view(np.uint8), bitorder="little")
        return torch.from_numpy(np.flatnonzero(bits))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """ids int64 [n] -> row of each, int64 [n], 0 for an id without one; which have one, bool [n], None for all."""
        if self.kind == "all":
            return ids, None
        if self.kind == "list":
            if not self.rows:
                return torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
            rows = torch.searchsorted(self.listed, ids.to(self.listed.dtype)).clamp_(max=self.rows - 1)
            found = self.listed.index_select(0, rows) == ids
        else:
            at = ids >> 6
            word, bit = self.words.index_select(0, at), torch.bitwise_left_shift(torch.ones_like(ids), ids & 63)
            found = (word & bit) != 0
            rows = self.ranks.index_select(0, at) + popcount(word & (bit - 1))
        return rows * found, found


def kind_of(ids: int, rows: int) -> Kind:
    """The form that takes the least bytes."""
    if rows == ids:
        return "all"
    return "list" if _list_bytes(ids, rows) <= 12 * _words(ids) else "bitmap"


def index_bytes(ids: int, rows: int) -> int:
    """Bytes of the index of ``rows`` out of ``ids``."""
    return {"all": 0, "list": _list_bytes(ids, rows), "bitmap": 12 * _words(ids)}[kind_of(ids, rows)]


def popcount(x: Tensor) -> Tensor:
    """Set bits of each 64-bit word, int64 [...] (Warren, "Hacker's Delight", 5-1)."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56


def _words(ids: int) -> int:
    return -(-ids // 64)


def _list_dtype(ids: int) -> torch.dtype:
    return torch.int32 if ids <= 1 << 31 else torch.int64


def _list_bytes(ids: int, rows: int) -> int:
    return rows * _list_dtype(ids).itemsize
