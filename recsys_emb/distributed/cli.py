"""`recsys-emb plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recsys_emb.errors import UserError

if TYPE_CHECKING:
    from recsys_emb.config import RunConfig


def plan(
    config: Annotated[
        Path | None, typer.Argument(help="A run's YAML file; not needed with --model and --fields.", metavar="CONFIG")
    ] = None,
    model: Annotated[str | None, typer.Option(help="One of `recsys-emb models`.")] = None,
    fields: Annotated[
        list[str],
        typer.Option(metavar="NAME=N,...", help="Fields and their ids, as user=200M,item=2e7, instead of a dataset."),
    ] = [],  # noqa: B006  typer copies it
    dense: Annotated[int, typer.Option(min=0, help="Dense features beside --fields.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a batch over all devices.")] = None,
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
    """Say what a run would take on several devices, without training: memory, network, the slowest part.

    Before there is data: `plan --model dlrm --fields user=200M,item=20M,city=5k --dense 13`.
    """
    from recsys_emb.distributed.plan import plan_run
    from recsys_emb.distributed.workload import of_dataset, of_fields

    if dense and not fields:
        raise UserError("--dense: belongs to --fields; a dataset has its own dense features")
    if fields and ids_per_field:
        raise UserError("--ids-per-field: --fields says already how many ids a field has; give one of the two")
    sizes, memory = _sizes("--ids-per-field", ids_per_field), _memory(device_memory)
    parsed = _config(config, model, batch_size, bool(fields), overrides)
    workload = of_fields(_fields(fields), dense) if fields else of_dataset(parsed.data.open(), sizes)
    made = plan_run(parsed, workload, world_size, memory)
    if as_json:
        typer.echo(json.dumps(made))
        return
    console = Console()
    for title, table in _tables(made):
        console.print(title, highlight=False)
        console.print(table)
    console.print("Assumed:")
    for line in made["assumptions"]:
        console.print(f"- {line}", markup=False, highlight=False)


def _config(
    config: Path | None, model: str | None, batch_size: int | None, without_data: bool, overrides: Sequence[str]
) -> RunConfig:
    """The run as its YAML file, or the options alone, say it."""
    from recsys_emb.config import load_config

    if config is None and (model is None or not without_data):
        without = "only --model NAME --fields NAME=N,... goes without"
        raise UserError(f"Missing argument 'CONFIG': a run's YAML file; {without}")
    given = [] if model is None else [f"model.name={model}"]
    given += [] if batch_size is None else [f"training.batch_size={batch_size}"]
    given += ["data.path=none"] if config is None else []  # it is not looked at
    return load_config(config, [*given, *overrides])


def _memory(text: str) -> int:
    from recsys_emb.sizes import budget_bytes

    try:
        size = budget_bytes(text, 0)
    except UserError:
        size = 0
    if not size:
        raise UserError(f"--device-memory: {text!r} is not a size; allowed: bytes such as 80000000000 or 80GB")
    return size


def _fields(given: Sequence[str]) -> dict[str, int]:
    """Ids by field."""
    texts = [text.strip() for part in given for text in part.split(",")]
    sizes = _sizes("--fields", texts)
    if "" in sizes or len(sizes) < len(texts):
        raise UserError(f"--fields: {','.join(given)!r}; expected NAME=N,... with each name once")
    return sizes


def _sizes(flag: str, given: Sequence[str]) -> dict[str, int]:
    """Numbers by name; \"\" is every one that is not named."""
    from recsys_emb.sizes import parse_count

    sizes = {}
    for text in given:
        name, _, number = text.rpartition("=")
        count = parse_count(number)
        if not count:
            expected = "N or VOCABULARY=N" if flag == "--ids-per-field" else "NAME=N"
            raise UserError(f"{flag}: {text!r}; expected {expected} with N of 1 or more, such as 5000, 5k, 2e8 or 200M")
        sizes[name] = count
    return sizes


def _tables(made: dict[str, Any]) -> list[tuple[str, Table]]:
    """Each with its title, which is longer than some are wide."""
    from recsys_emb.sizes import human_bytes

    fits = "fits" if made["fits"] else "DOES NOT FIT"
    least = made["least_devices"]
    ids = "63-bit hashed ids" if made["ids"] is None else f"{made['ids']:,} ids"
    head = (
        f"{made['model']} with {made['backend']} embeddings, {ids}: {fits} on {made['devices']} devices "
        f"of {human_bytes(made['device_memory'])}; the least is {least or 'more than can be'}"
    )
    placed = Table("table", "rows", "columns", "rows a device", "bytes a device")
    for t in made["tables"]:
        placed.add_row(
            t["name"],
            f"{t['rows']:,}",
            str(t["dim"]),
            f"{t['rows_per_device']:,}",
            human_bytes(t["bytes_per_device"]),
        )
    costs = Table("of a device", "")
    for key, value in made["bytes_per_device"].items():
        costs.add_row(f"memory: {_words(key)}", human_bytes(value))
    for key, value in made["sent_per_step"].items():
        costs.add_row(f"sent: {_words(key)}", human_bytes(value))
    for key, value in made["seconds"].items():
        slowest = " (slowest)" if key == made["slowest"] else ""
        costs.add_row(f"time: {_words(key)}{slowest}", f"{1000 * value:.3g} ms")
    costs.add_row("rows a second, all devices", f"{made['rows_per_second']:,.0f}")
    budget = made["budget_bytes"]
    within = "without a budget" if budget is None else f"within the run's budget of {human_bytes(budget)}"
    others = Table("backend", "served", "bytes a device", "least devices")
    for row in made["backends"]:
        if "problem" in row:
            others.add_row(row["backend"], row["problem"])
        else:
            sizes = (human_bytes(row[k]) for k in ("serving_bytes", "bytes_per_device"))
            others.add_row(row["backend"], *sizes, str(row["least_devices"] or "-"))
    return [
        (head, placed),
        (f"A step of {made['batch_size']:,} rows", costs),
        (f"Other backends, {within}, with their default options", others),
    ]


def _words(key: str) -> str:
    return key.replace("_", " ")
