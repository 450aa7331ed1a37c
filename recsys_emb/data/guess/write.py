"""A proposal as the YAML that `data prepare table --schema` takes, with the reasons as comments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from recsys_emb.data.guess.roles import Proposal, propose
from recsys_emb.data.guess.sample import Sample, read_sample
from recsys_emb.data.sources._table_options import TableOptions

_SECTIONS = ("dense", "categorical", "multi_valued", "sequences")


def guess(path: Path) -> str:
    """The YAML for a file, a folder or a glob.

    Raises:
        UserError: nothing is there, no rows, no column that could be the label, or none to embed.
    """
    sample = read_sample(path)
    text = "\n".join(_lines(path, sample, propose(sample))) + "\n"
    TableOptions.model_validate(yaml.safe_load(text))
    return text


def _lines(path: Path, sample: Sample, proposal: Proposal) -> Iterator[str]:
    what = f"all {sample.rows:,}" if sample.whole else f"{sample.rows:,}"
    yield f"# Guessed from {what} rows of {path}: read it, change it, and then"
    name = path.name.split(".")[0] or "table"
    yield f"#   recsys-emb data prepare table --schema THIS.yaml --input {path} --out prepared/{name}"
    if sample.malformed:
        yield f"# Lines that are no rows of this table: {sample.malformed:,}; `data prepare` lists them."
    for position, (key, value) in enumerate(proposal.label.options.items()):
        yield _line(key, value, "" if position else proposal.label.why)
    for section in _SECTIONS:
        entries = proposal.fields.get(section)
        if entries:
            yield f"{section}:"
            for entry, comment in entries:
                yield f"  - {_flow(entry['name'] if len(entry) == 1 else entry)}  # {_plain(comment)}"
    for key, chosen in (("user", proposal.user), ("weight", proposal.weight), ("split", proposal.split)):
        if chosen is not None:
            yield _line(key, *chosen)
    if sample.separator is not None:
        yield _line("separator", sample.separator, "between the values of a line")
    if sample.null_values:
        yield _line("null_values", sample.null_values, "stand for missing values")
    if proposal.out:
        yield "# Left out:"
        yield from (f"#   {_plain(column)}: {_plain(why)}" for column, why in proposal.out)


def _line(key: str, value: Any, comment: str) -> str:
    return f"{key}: {_flow(value)}" + (f"  # {_plain(comment)}" if comment else "")


def _flow(value: Any) -> str:
    """YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(text: str) -> str:
    """Without line ends, which would end a comment."""
    return " ".join(text.split())
