"""Ways in which bytes get damaged, drawn by hypothesis so that a failing case shrinks to a small one."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

POSITIONS = 1 << 20
"""Damages name places as fractions of this, so that they fit a file of any length."""

Damage = tuple[str, int, int, bytes]
"""What is done, where, how far, and with which bytes."""

_telling = st.sampled_from(
    [
        *(
            b"\0",
            b"\t",
            b"\n",
            b"\r\n",
            b'"',
            b",",
            b"|",
            b"-",
            b"+",
            b".",
            b" ",
            b"\xff",
            b"\xc3",
            b"\xef\xbb\xbf",
            b"\\",
        ),
        *(b"NaN", b"inf", b"1e999", b"-1", b"0", b"9" * 25, b"null", b"true", b"{", b"[", b"}", b"[" * 3000, b"../x"),
        *(b"/x", b"::::", b'""', b"\n\n", b"\xff" * 8, b"\0" * 8),
    ]
)
_payload = _telling | st.binary(min_size=1, max_size=8)

damages: st.SearchStrategy[list[Damage]] = st.lists(
    st.tuples(
        st.sampled_from(["flip", "put", "insert", "drop", "repeat", "cut", "swap"]),
        st.integers(0, POSITIONS - 1),
        st.integers(0, POSITIONS - 1),
        _payload,
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, done: list[Damage]) -> bytes:
    """``content`` after all damages."""
    for kind, position, other, payload in done:
        at, far = (_scattered(p) * len(content) // POSITIONS for p in (position, other))
        content = _DAMAGES[kind](content, min(at, far), max(at, far), payload)
    return content


def _scattered(position: int) -> int:
    """Another position: hypothesis prefers small numbers, and headers should not get most of the damage."""
    return position * 0x9E3779B1 % POSITIONS


def _flip(c: bytes, at: int, to: int, payload: bytes) -> bytes:
    return c[:at] + bytes([c[at] ^ (1 << payload[0] % 8)]) + c[at + 1 :] if c else c


def _repeat(c: bytes, at: int, to: int, payload: bytes) -> bytes:
    return c[:to] + c[at : min(to, at + 4096)] + c[to:]


_DAMAGES: dict[str, Callable[[bytes, int, int, bytes], bytes]] = {
    "flip": _flip,
    "put": lambda c, at, to, payload: c[:at] + payload + c[at + len(payload) :],
    "insert": lambda c, at, to, payload: c[:at] + payload + c[at:],
    "drop": lambda c, at, to, payload: c[:at] + c[min(to, at + 64) :],
    "repeat": _repeat,
    "cut": lambda c, at, to, payload: c[:at],
    "swap": lambda c, at, to, payload: c[:at] + c[to:] + c[at:to],
}
