"""`recsys-emb sweep`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from recsys_emb.errors import UserError
from recsys_emb.training.stop import Stopped, stop_on_signals


class ManyValues(TyperCommand):
    """``--budgets 0.5 0.1`` is read as ``--budgets 0.5 --budgets 0.1``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {flag for option in self.params if getattr(option, "multiple", False) for flag in option.opts}
        return super().parse_args(ctx, list(_repeated(args, several)))


def _repeated(arguments: Sequence[str], several: set[str]) -> Iterator[str]:
    """The arguments with a flag before each of its values."""
    flag, first = "", False
    for argument in arguments:
        if argument.startswith("-"):
            flag, first = (argument if argument in several else ""), True
        elif flag and not first:
            yield flag
        else:
            first = False
        yield argument


_BUDGETS = ["0.5", "0.1", "0.02"]


def sweep(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.", metavar="CONFIG")],
    out: Annotated[Path, typer.Option(help="Folder of the figures; the same command continues one that was stopped.")],
    budgets: Annotated[list[str], typer.Option(metavar="RATIO...", help="Ratios to the full tables.")] = _BUDGETS,
    methods: Annotated[
        list[str],
        typer.Option(metavar="NAME...", help="Of `recsys-emb backends` or --settings. Default: all."),
    ] = [],  # noqa: B006  typer copies it
    seeds: Annotated[int, typer.Option(min=1, help="How many: 1, 2, ...")] = 3,
    settings: Annotated[
        Path | None,
        typer.Option(help="YAML of settings to try: `hash: {choices: [{l2: 0.1}, {options: {balance: 1}}]}`."),
    ] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE...", help="Override a config key; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Train methods at several memory budgets and seeds: tables, a plot and a page of AUC against bytes.

    Full tables are trained first, and post-training methods made of them. Methods keep their default settings; where
    --settings gives one several, the validation split chooses.
    """
    from recsys_emb.config import load_config
    from recsys_emb.sweep.methods import chosen_methods
    from recsys_emb.sweep.results import points, read_results
    from recsys_emb.sweep.run import Sweep, check_folder
    from recsys_emb.sweep.terminal import points_table, quiet, tell

    ratios = _ratios(budgets)
    command = f"recsys-emb sweep {config} --budgets {' '.join(budgets)} --seeds {seeds} --out {out}"
    base, chosen = load_config(config, overrides), chosen_methods(methods, settings)
    made = Sweep(base, chosen, ratios, results=out, runs=out / "runs", command=command)
    check_folder(made)
    made.check()
    from recsys_emb.sweep.write import write_tables  # matplotlib takes a while to import

    try:
        with stop_on_signals() as stop:
            for seed in range(1, seeds + 1):
                made.seed(seed, quiet if as_json else tell, stop)
                write_tables(out)
    except Stopped as stopped:
        raise Stopped(stopped.signal, f"stopped by {stopped.signal.name}; the same command continues") from None
    rows = points(read_results(out)[made.name])
    if as_json:
        typer.echo(json.dumps({"out": str(out), "points": rows}))
    else:
        points_table(rows, out)


def _ratios(texts: Sequence[str]) -> tuple[float, ...]:
    """The budgets, the largest first. UserError where one is no ratio."""
    ratios = []
    for text in texts:
        try:
            ratios.append(float(text))
        except ValueError:
            raise UserError(f"--budgets {text}: not a number; allowed: ratios to the full tables such as 0.1") from None
    return tuple(sorted(set(ratios), reverse=True))
