"""`recsys-emb data`: list the sources, prepare a dataset, describe one. Each command imports what it needs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from recsys_emb.data.first_pass import ReportProgress

app = typer.Typer(no_args_is_help=True, help="Prepare datasets and look at them.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_sources(
    name: Annotated[str | None, typer.Argument(help="One of them: its options, with what is allowed.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the sources and their options; `data list table` describes the keys of a schema."""
    from recsys_emb.data.sources.base import source_registry
    from recsys_emb.option_docs import outline

    if name is not None:
        source = source_registry.get(name)
        described = {"name": name, "summary": source.summary, "options": outline(source.Options)}
        if as_json:
            typer.echo(json.dumps(described))
        else:
            Console().print(_options_table(described))
        return
    sources = {n: source_registry.get(n) for n in source_registry.names()}
    if as_json:
        typer.echo(
            json.dumps({n: {"summary": s.summary, "options": list(s.Options.model_fields)} for n, s in sources.items()})
        )
        return
    table = Table("source", "reads", "options (--option key=value)", box=None, padding=(0, 2, 0, 0))
    for name, source in sources.items():
        table.add_row(name, source.summary, ", ".join(source.Options.model_fields))
    Console().print(table)


def _options_table(source: dict[str, Any]) -> Table:
    """Every key, those of mappings below it."""
    title = f"source {source['name']}: {source['summary']}"
    table = Table("key", "default", "allowed", "what it says", title=title, box=None, padding=(0, 2, 0, 0))
    table.title_justify, table.title_style = "left", ""
    for option in source["options"]:
        for depth, row in [(0, option), *((1, key) for key in option["keys"])]:
            default = "" if row["default"] in (None, "", []) or (option is row and row["keys"]) else str(row["default"])
            table.add_row("  " * depth + row["key"], default, row["allowed"], row["description"])
    return table


class _WithSchemaKeys(typer.core.TyperCommand):
    """A command whose help ends with a paragraph for each key of a table's schema."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from recsys_emb.data.sources._table_options import TableOptions
        from recsys_emb.option_docs import outline

        lines = ["Keys of --schema for `table` (`data guess FILE` writes a first one):"]
        for option in outline(TableOptions):
            keys = [f"{row['key']}: {row['description']}" for row in option["keys"]]
            lines.append(" · ".join([f"{option['key']}: {option['description']}", *keys]))
        self.epilog = escape("\n\n".join(lines))
        super().format_help(ctx, formatter)


@app.command("prepare", cls=_WithSchemaKeys)
def prepare_command(
    source: Annotated[str, typer.Argument(help="One of `recsys-emb data list`.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    input: Annotated[Path | None, typer.Option(help="File, folder or glob to read.")] = None,
    schema: Annotated[Path | None, typer.Option(help="YAML file of options; for `table`, what each column is.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the source, key=value; may be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="What reports call the dataset.")] = None,
    min_count: Annotated[int, typer.Option(help="Rarer values of the training split share id 0.")] = 1,
    ids: Annotated[
        Literal["vocabulary", "hash64"],
        typer.Option(help="vocabulary: ids by falling count; hash64: 63-bit hashes, no vocabulary."),
    ] = "vocabulary",
    like: Annotated[
        Path | None,
        typer.Option(help="A prepared dataset or an artifact: its vocabularies, statistics and options are used."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prepared dataset.")] = False,
    max_rejected: Annotated[float, typer.Option(help="Share of malformed rows above which nothing is made.")] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Turn raw click logs into a dataset that trains without parsing."""
    from recsys_emb.allocator import keep_freed_memory
    from recsys_emb.data.encode import prepare
    from recsys_emb.data.like import open_reference
    from recsys_emb.data.options import make_source
    from recsys_emb.data.unknown import unknown_warnings

    reference = None if like is None else open_reference(like)
    base = reference.rows.options if reference is not None and reference.rows.source == source else None
    read = make_source(source, input, schema, option or [], base)
    keep_freed_memory()
    with show_progress(quiet=as_json) as report:
        manifest = prepare(
            read,
            out,
            name=name,
            min_count=min_count,
            ids=ids,
            like=reference,
            overwrite=overwrite,
            max_rejected=max_rejected,
            progress=report,
        )
    warn(_notes(manifest))
    for split in ("valid", "test") if ids == "vocabulary" else ():
        warn(f"{split} split, {line}" for line in unknown_warnings(manifest["oov_rate"][split]))
    _say_made(manifest, str(out), as_json)


def _notes(manifest: dict[str, Any]) -> list[str]:
    from recsys_emb.data.sources.base import Note

    return [str(Note(**note)) for note in manifest["notes"]]


def _say_made(manifest: dict[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(manifest))
        return
    rows = sum(manifest["rows"].values())
    seconds = manifest["seconds"]
    typer.echo(
        f"{what}: {rows:,} rows in {seconds:.1f} s ({rows / seconds:,.0f} rows/s), {manifest['rejected']} rejected"
    )


@app.command("append")
def append_command(
    folder: Annotated[Path, typer.Argument(help="A folder made by `recsys-emb data prepare`.")],
    input: Annotated[
        Path | None, typer.Option(help="File, folder or glob of new rows, in the first rows' format.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the part, such as 2026-11-26; absent: the input's.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the source, key=value, other than at first; may be repeated.")
    ] = None,
    min_count: Annotated[
        int | None, typer.Option(help="Rarer new values share id 0; absent: as the folder was prepared.")
    ] = None,
    decay: Annotated[float, typer.Option(help="Factor on the id counts of before, 0 to 1.")] = 1.0,
    max_rejected: Annotated[float, typer.Option(help="Share of malformed rows above which nothing is made.")] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Add new rows to a prepared dataset: a part of its own, to train on. Earlier states stay readable by name."""
    from recsys_emb.allocator import keep_freed_memory
    from recsys_emb.data.append import append

    keep_freed_memory()
    with show_progress(quiet=as_json) as report:
        manifest = append(
            folder,
            input,
            name=name,
            options=option or [],
            min_count=min_count,
            decay=decay,
            max_rejected=max_rejected,
            progress=report,
        )
    warn(_notes(manifest))
    _say_made(manifest, f"{folder} {manifest['part']['name']}", as_json)


@app.command("guess")
def guess_command(
    file: Annotated[
        Path, typer.Argument(help="CSV, TSV or Parquet: a file, folder or glob, of which some rows are looked at.")
    ],
) -> None:
    """Propose a schema for a table: YAML for `data prepare table --schema`, with the reasons as comments."""
    from recsys_emb.data.guess.write import guess

    typer.echo(guess(file), nl=False)


@app.command("describe")
def describe_command(
    folder: Annotated[Path, typer.Argument(help="A folder made by `recsys-emb data prepare`.")], as_json: AsJson = False
) -> None:
    """Show rows, click rates, fields and sizes of a prepared dataset."""
    from recsys_emb.data.describe import describe

    facts = describe(folder)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    console = Console()
    for table in _tables(facts):
        console.print(table, soft_wrap=isinstance(table, str))


def _tables(facts: dict[str, Any]) -> Iterator[Table | str]:
    short = {k: v for k, v in facts["options"].items() if v is not None and "{" not in str(v)}  # not table's columns
    options = ", ".join(f"{k}={v}" for k, v in short.items() if v != [])
    ids = "63-bit hashes" if facts["total_ids"] is None else f"{facts['total_ids']:,} ids"
    yield f"{facts['name']}: source {facts['source']} ({options}), min_count {facts['min_count']}"
    yield (
        f"{ids}, vocabularies {facts['vocabulary_bytes']:,} bytes, on disk {facts['bytes']:,} bytes, "
        f"{facts['rejected']} rows rejected\n"
    )
    yield from (f"{note}\n" for note in facts["notes"])
    splits = Table("split", "rows", "click rate", "Bayes AUC", "Bayes logloss", box=None, padding=(0, 2, 0, 0))
    for split, rows in facts["rows"].items():
        bayes = facts["bayes"].get(split, {})
        best = [f"{bayes[k]:.4f}" if k in bayes else "" for k in ("auc", "logloss")]
        splits.add_row(split, f"{rows:,}", f"{facts['click_rate'][split]:.4f}", *best)
    yield splits
    yield ""
    if len(facts["states"]) > 1:
        states = Table("state", "rows of its last part", "click rate", "ids", box=None, padding=(0, 2, 0, 0))
        for state in facts["states"]:
            known = "" if state["ids"] is None else f"{state['ids']:,}"
            states.add_row(state["name"], f"{state['rows']:,}", f"{state['click_rate']:.4f}", known)
        yield states
        yield ""
    fields = Table("field", "kind", "vocabulary", "ids", "OOV valid", "OOV test", box=None, padding=(0, 2, 0, 0))
    for field in facts["fields"]:
        oov = field.get("oov_rate") or {}
        ids_of = field.get("ids")
        rates = [f"{oov[s]:.2%}" if s in oov else "" for s in ("valid", "test")]
        fields.add_row(
            field["name"], field["kind"], field.get("vocabulary", ""), f"{ids_of:,}" if ids_of else "", *rates
        )
    yield fields


def warn(lines: Iterable[str]) -> None:
    """Prints what a user should know of a command that went on."""
    for line in lines:
        typer.echo(f"warning: {line}", err=True)


@contextmanager
def show_progress(quiet: bool) -> Iterator[ReportProgress | None]:
    """Rows done and rate on stderr; nothing when ``quiet``, or where nobody watches."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}
        started: dict[str, float] = {}

        def report(stage: str, rows: int, total: int | None) -> None:
            if stage not in tasks:
                started[stage] = time.perf_counter()
                tasks[stage] = bars.add_task(stage, total=total, rate="")
                return
            seconds = max(time.perf_counter() - started[stage], 1e-9)
            bars.update(tasks[stage], completed=rows, rate=f"{rows:,} rows, {rows / seconds:,.0f} rows/s")

        yield report
