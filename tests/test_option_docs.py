"""What the command line says of options."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from recsys_emb.data.sources._table_options import TableOptions
from recsys_emb.embeddings import backend_registry
from recsys_emb.embeddings.posttraining import posttraining_registry
from recsys_emb.models import model_registry
from recsys_emb.option_docs import document, outline


class Inner(BaseModel):
    x: int


class Options(BaseModel):
    name: Literal["one"] = "one"
    way: Literal["left", "right"] = Field("left", description="where to")
    size: int | None = Field(None, ge=1, le=2_000_000)
    share: float = Field(0.5, gt=0, lt=1)
    widths: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    by_name: dict[str, int] = {}
    inner: Inner | None = None
    on: bool = False


def test_every_kind_of_option_in_words() -> None:
    rows = {row["key"]: row for row in document(Options, hidden={"name"})}
    assert list(rows) == ["way", "size", "share", "widths", "by_name", "inner", "on"]
    assert rows["way"] == {"key": "way", "allowed": "left, right", "default": "left", "description": "where to"}
    assert {key: row["allowed"] for key, row in rows.items() if key != "way"} == {
        "size": "integer from 1 to 2,000,000 or null",
        "share": "number above 0 below 1",
        "widths": "list of integers from 0 or null",
        "by_name": "mapping to integer",
        "inner": "mapping or null",
        "on": "boolean",
    }


class Outer(BaseModel):
    several: tuple[Inner, ...] = Field((), description="many")
    one: Inner | None = None
    plain: tuple[int | str, ...] = ()


def test_an_outline_has_the_keys_of_mappings() -> None:
    rows = {row["key"]: row for row in outline(Outer)}
    inner = [{"key": "x", "allowed": "integer", "default": None, "description": ""}]
    assert {key: row["keys"] for key, row in rows.items()} == {"several": inner, "one": inner, "plain": []}
    assert rows["several"]["allowed"] == "list of mappings"
    assert rows["plain"]["allowed"] == "list of integers or strings"


def test_every_key_of_a_schema_says_what_it_does() -> None:
    for option in outline(TableOptions):
        for row in (option, *option["keys"]):
            assert len(row["description"]) > 8, f"{option['key']}: {row['key']}"
            assert "anything" not in row["allowed"]


@pytest.mark.parametrize("registry", [backend_registry, posttraining_registry, model_registry], ids=lambda r: r.kind)
def test_every_option_says_what_it_does(registry: object) -> None:
    for name in registry.names():  # type: ignore[attr-defined]
        for row in registry.options(name):  # type: ignore[attr-defined]
            assert len(row["description"]) > 8, f"{name}: {row['key']}"
            assert "anything" not in row["allowed"]
