"""`recsys-emb plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recsys_emb.errors import UserError


def plan(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.", metavar="CONFIG")],
    world_size: Annotated[int, typer.Option(min=1, help="Devices, one process each.")] = 8,
    device_memory: Annotated[str, typer.Option(help="Memory of a device, such as 80GB.")] = "80GB",
    ids_per_field: Annotated[
        list[str],
        typer.Option(metavar="[VOCABULARY=]N", help="Plan for so many ids of every field, or of one; repeatable."),
    ] = [],  # noqa: B006  typer copies it
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Say what a run would take on several devices, without training: memory, network, the slowest part."""
    from recsys_emb.config import load_config
    from recsys_emb.distributed.plan import plan_run

    made = plan_run(load_config(config, overrides), world_size, _memory(device_memory), _ids(ids_per_field))
    if as_json:
        typer.echo(json.dumps(made))
    else:
        for table in _tables(made):
            Console().print(table)


def _memory(text: str) -> int:
    from recsys_emb.sizes import budget_bytes

    try:
        size = budget_bytes(text, 0)
    except UserError:
        size = 0
    if not size:
        raise UserError(f"--device-memory: {text!r} is not a size; allowed: bytes such as 80000000000 or 80GB")
    return size


def _ids(given: Sequence[str]) -> dict[str, int]:
    """Sizes by vocabulary; \"\" is every one that is not named."""
    sizes = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--ids-per-field: {text!r}; expected N or VOCABULARY=N with N of 1 or more")
        sizes[name] = int(number)
    return sizes


def _tables(made: dict[str, Any]) -> list[Table]:
    from recsys_emb.sizes import human_bytes

    fits = "fits" if made["fits"] else "DOES NOT FIT"
    least = made["least_devices"]
    ids = "63-bit hashed ids" if made["ids"] is None else f"{made['ids']:,} ids"
    head = (
        f"{made['model']} with {made['backend']} embeddings, {ids}: {fits} on {made['devices']} devices "
        f"of {human_bytes(made['device_memory'])}; the least is {least or 'more than can be'}"
    )
    placed = Table("table", "rows", "columns", "rows a device", "bytes a device", title=head, title_justify="left")
    for t in made["tables"]:
        placed.add_row(
            t["name"],
            f"{t['rows']:,}",
            str(t["dim"]),
            f"{t['rows_per_device']:,}",
            human_bytes(t["bytes_per_device"]),
        )
    costs = Table("of a device", "", title="A step", title_justify="left")
    for key, value in made["bytes_per_device"].items():
        costs.add_row(f"memory: {_words(key)}", human_bytes(value))
    for key, value in made["sent_per_step"].items():
        costs.add_row(f"sent: {_words(key)}", human_bytes(value))
    for key, value in made["seconds"].items():
        slowest = " (slowest)" if key == made["slowest"] else ""
        costs.add_row(f"time: {_words(key)}{slowest}", f"{1000 * value:.3g} ms")
    costs.add_row("rows a second, all devices", f"{made['rows_per_second']:,.0f}")
    others = Table("backend", "served", "bytes a device", "least devices", title="Other backends", title_justify="left")
    for row in made["backends"]:
        if "problem" in row:
            others.add_row(row["backend"], row["problem"])
        else:
            sizes = (human_bytes(row[k]) for k in ("serving_bytes", "bytes_per_device"))
            others.add_row(row["backend"], *sizes, str(row["least_devices"] or "-"))
    return [placed, costs, others]


def _words(key: str) -> str:
    return key.replace("_", " ")
