"""Codes of 1 to 8 bits, one after another in a stream of bits without gaps.

Code i of b bits takes the bits b i to b (i + 1) - 1; bit j is bit j mod 8, counted from the lowest, of byte j div 8. So
it lies in one byte or in two that follow each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 16
"""Codes packed at a time; a multiple of 8, so that a block ends with a byte."""


def packed_bytes(codes: int, bits: int) -> int:
    """Bytes of so many codes."""
    return -(-codes * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [n] codes below 2^bits -> uint8 [packed_bytes(n, bits)]."""
    return torch.cat([_pack(part, bits) for part in codes.split(BLOCK)]) if len(codes) else codes


def _pack(codes: Tensor, bits: int) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    stream = (codes[:, None] >> places[:bits] & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8))
    return (stream.view(-1, 8) << places).sum(1, dtype=torch.uint8)


def unpack(stream: Tensor, starts: Tensor, ids: Tensor, bits: Tensor) -> Tensor:
    """Codes from several packings that lie in one stream.

    Args:
        stream: uint8 [bytes].
        starts: int64, the byte at which a packing begins; of one shape with the following, or broadcast with them.
        ids: int64, which of its codes.
        bits: int64, of its codes.

    Returns:
        int64, of the common shape.
    """
    bit = ids * bits
    byte = starts + (bit >> 3)
    last = len(stream) - 1
    low, high = (_gather(stream, at.clamp(max=last)) for at in (byte, byte + 1))
    largest = torch.bitwise_left_shift(torch.ones_like(bits), bits) - 1
    return torch.bitwise_right_shift(low | high << 8, bit & 7) & largest


def _gather(stream: Tensor, at: Tensor) -> Tensor:
    return stream.index_select(0, at.flatten()).view(at.shape).long()
