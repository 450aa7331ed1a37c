"""``KEY=VALUE`` texts: of a run's config, and of a data source, which reads values a little differently."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys_emb.config import parse_options
from recsys_emb.data.options import make_source
from recsys_emb.errors import UserError


def test_values_are_yaml_in_nested_sections() -> None:
    assert parse_options(["a.b=1", "a.c=[1, x]", "d=1e-3", "e=", "f=x=y"]) == {
        "a": {"b": 1, "c": [1, "x"]},
        "d": 0.001,
        "e": None,
        "f": "x=y",
    }


def test_a_name_with_dots_or_an_equals_sign_stands_in_quotes() -> None:
    texts = ['widths."C.1"=4', "widths.'a=b'=2", "widths.C2=1", 'path="C.1"']
    assert parse_options(texts) == {"widths": {"C.1": 4, "a=b": 2, "C2": 1}, "path": "C.1"}


def test_a_data_option_that_is_no_yaml_is_a_text_and_so_is_1e3(tmp_path: Path) -> None:
    options = ["label=1e-3", "separator=\t", "categorical=[a]", "split.column=part"]
    source = make_source("table", tmp_path, options=options)
    assert (source.options.label.column, source.options.separator) == ("1e-3", "\t")
    assert source.options.split.column == "part"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["epochs"], "'epochs': expected KEY=VALUE such as min_count=3"),
        (["=3"], "'=3': expected KEY=VALUE"),
        (['a."b=3'], "expected KEY=VALUE such as min_count=3; a name with dots stands in quotes"),
        (["a=1", "a.b=2"], "'a.b=2': 'a' is a value, not a section"),
        (["a=["], r"'a=\[': '\[' is not a YAML value"),
    ],
)
def test_mistakes_name_the_text(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"--option .*{message}"):
        parse_options(texts)


def test_mistakes_in_data_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--option 'x': expected KEY=VALUE such as seed=1"):
        make_source("synthetic", options=["x"])
