"""`recsys-emb search`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from recsys_emb.errors import UserError
from recsys_emb.training.stop import Stopped


def search(
    config: Annotated[Path, typer.Argument(help="A search's YAML file.", metavar="CONFIG")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all; infeasible and repeated ones do not count.")],
    budgets: Annotated[
        list[str],
        typer.Option(
            "--budget",
            help="Bytes such as 20MB, or a ratio to the full tables such as 0.1; repeatable, each gets a winner.",
        ),
    ] = [],  # noqa: B006  typer copies it
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the base run; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the processors.")] = 1,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train the best trial and the best baseline from so many seeds.")
    ] = 1,
    study: Annotated[str | None, typer.Option(help="Name of the study. Default: the name of CONFIG.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="SQL URL such as sqlite:///studies.db. Default: a journal file in --out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in --out.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder. Default: runs/search-CONFIG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Search widths, backends and any other keys of a run, for the best AUC under a memory budget."""
    from recsys_emb.search.config import load_search
    from recsys_emb.search.run import default_out, run_search
    from recsys_emb.search.terminal import print_budgets, print_summary, quiet, tell
    from recsys_emb.training.progress import Silent

    if resume and out is None:
        raise UserError("--resume: name the search to continue with --out DIR")
    loaded = load_search(config, overrides, budgets)
    folder = out or default_out(config)
    again = f"continue with `recsys-emb search {config} --trials {trials} --out {folder} --resume` and the same options"
    try:
        summary = run_search(
            loaded,
            folder,
            trials,
            Silent(),
            quiet if as_json else tell,
            jobs=jobs,
            name=study or config.stem,
            storage=storage,
            resume=resume,
            seeds=seeds,
        )
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, f"stopped by SIGINT; {again}") from None
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; {again}", str(error.filename or folder)) from error
    if as_json:
        typer.echo(json.dumps({"out": str(folder), **summary}))
    else:
        (print_budgets if "budgets" in summary else print_summary)(summary, folder)
    if summary["failure"] and "complete" not in summary["states"]:
        raise UserError(f"{folder}: every trial failed, the first with: {summary['failure']}")
