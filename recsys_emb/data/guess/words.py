"""What names of columns say: the words of logs."""

from __future__ import annotations

import re


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


LABEL = _set(
    "label click clicks clicked clk isclick target y converted conversion convert purchased purchase bought buy like "
    "liked response attributed installed opened ordered"
)
RATING = _set("rating ratings stars score")
USER = _set(
    "user users userid uid customer customerid visitor visitorid member memberid reader viewer client account cookie "
    "shopper buyer reviewer reviewerid person guest msno"
)
ID = _set("id ids uid uuid guid key hash sku asin isbn code zip postcode zipcode")
NUMBER = _set(
    "price amount age count counts cnt num number n quantity qty views days hours minutes seconds duration length len "
    "size total sum avg mean median rate ratio pct percent share score distance weight width height temperature bid "
    "budget cost revenue discount balance"
)
TIME = _set("time times timestamp ts date datetime day created at when event epoch dt")
WEIGHT = _set("weight weights importance")
_OF_HISTORIES = _set("id last recent history hist past seen")


def words(name: str) -> list[str]:
    """``UserID`` and ``user_id`` -> user, id."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^A-Za-z]+", apart.lower()) if word]


def stems(name: str) -> set[str]:
    """Words of things, without a plural's s, that two columns of one thing share: item of last_items and item_id."""
    return {word.rstrip("s") for word in words(name)} - _OF_HISTORIES


def says(name: str, meant: frozenset[str]) -> bool:
    """Whether a word of the name is one of these."""
    return not meant.isdisjoint(words(name))


def names_user(name: str) -> bool:
    """Whether the name is that of a user's id and not of something of a user, such as user_age."""
    found = set(words(name))
    return bool(found & USER) and found <= USER | ID | {"name", "hashed", "anon"}
