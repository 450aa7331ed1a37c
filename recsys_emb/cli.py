"""The ``recsys-emb`` command. Each command calls one function; what is printed for people goes through rich.

A command imports what it needs when it is run: torch and torchrec take seconds, for which ``--help`` must not wait.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.exceptions
from rich.console import Console

from recsys_emb import __version__
from recsys_emb.data.cli import app as data
from recsys_emb.data.cli import warn
from recsys_emb.distributed.cli import plan
from recsys_emb.errors import LostProcess, UserError
from recsys_emb.quiet import quiet_torch
from recsys_emb.search.cli import search
from recsys_emb.serving.cli import compact, export, predict, serve
from recsys_emb.sweep.cli import ManyValues, sweep
from recsys_emb.training.stop import Stopped, stop_on_signals

app = typer.Typer(
    name="recsys-emb",
    help="Train click-through-rate models with small, fast and honest embedding tables.",
    epilog="Exit codes: 0 success, 2 a mistake in what was given, 130 Ctrl-C, 143 SIGTERM, 1 anything else. "
    "--debug shows a traceback.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, what shells use too."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Config = Annotated[Path, typer.Argument(help="A run's YAML file.", metavar="CONFIG")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable.")]


def main() -> None:
    """Entry point: mistakes of the user end in one line and exit code 2, never in a traceback."""
    quiet_torch()
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except Exception as error:
        if debug:
            raise
        code = _explain(error)
    except KeyboardInterrupt:
        code = _complain("interrupted", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"recsys-emb {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


def _explain(error: Exception) -> int:
    if isinstance(error, UserError):
        return _complain(str(error), 2)
    if isinstance(error, LostProcess):
        return _complain(str(error), 1)
    if isinstance(error, Stopped):
        return _complain(str(error), error.exit_code)
    if isinstance(error, typer.exceptions.TyperException):
        return _complain(" ".join(error.format_message().split()), 2)
    if isinstance(error, OSError):
        return _complain(f"{error.filename or 'i/o'}: {error.strerror or error}", 1)
    return _complain(f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)", 1)


def _complain(message: str, code: int) -> int:
    from recsys_emb.distributed.launch import rank, started_by_torchrun

    who = f"rank {rank()}: " if started_by_torchrun() else ""
    print(f"recsys-emb: {who}{message}", file=sys.stderr)
    return code


def _print_json(value: Any) -> None:
    print(json.dumps(value))


# -- training ---------------------------------------------------------------------------------------------------------


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(help="A run's YAML file; --resume goes without.", metavar="CONFIG")
    ] = None,
    overrides: Overrides = [],  # noqa: B006  typer copies it
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/MODEL-BACKEND-DATASET-SEED.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    from_: Annotated[
        Path | None, typer.Option("--from", help="Begin with the weights of this run (training.from).", metavar="RUN")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model as a YAML file says and write a run folder.

    `torchrun --nproc-per-node 2 -m recsys_emb train CONFIG --out RUN` does it on two processes.
    """
    from recsys_emb.config import load_config
    from recsys_emb.distributed.launch import attempt, rank, started_by_torchrun
    from recsys_emb.report import run_page, run_table
    from recsys_emb.training.progress import reporter_of
    from recsys_emb.training.run import default_out
    from recsys_emb.training.run import train as run_training

    if resume and out is None:
        raise UserError("--resume: name the run to continue with --out RUN")
    if resume and out is not None and not (out / "config.yaml").is_file():
        raise UserError(f"--resume: {out} holds no run to continue; leave out --resume to start one there")
    if out is None and started_by_torchrun():
        raise UserError("--out: name the run folder, so that all processes agree on it")
    begun = [] if from_ is None else [f"training.from={json.dumps(str(from_.resolve()))}"]
    parsed = load_config(config or _config_of(out, resume), [*overrides, *begun])
    folder = out or default_out(parsed)
    title = f"{parsed.model.name} {parsed.embedding.backend}"
    with stop_on_signals() as stop, reporter_of(title, as_json or rank() > 0) as reporter:
        report = run_training(parsed, folder, reporter, resume or attempt() > 0, stop=stop)
    if rank() > 0:
        return
    run_page(folder)
    if as_json:
        _print_json({"run": str(folder), **report})
    else:
        Console().print(run_table(report, folder))


def _config_of(out: Path | None, resume: bool) -> Path:
    """The config that a run to continue was started with."""
    if out is None or not resume:
        raise UserError("Missing argument 'CONFIG': a run's YAML file; only --out RUN --resume goes without")
    return out / "config.yaml"


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder or an artifact.", metavar="RUN_OR_ARTIFACT")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    data: Annotated[
        Path | None, typer.Option(help="Another prepared dataset with the same vocabularies (`data prepare --like`).")
    ] = None,
    input: Annotated[
        Path | None, typer.Option(help="Of an artifact: raw rows with labels, in the format of the dataset's source.")
    ] = None,
    by: Annotated[
        list[str],
        typer.Option(metavar="FIELD", help="With --input: AUC of known and unknown values of it apart; repeatable."),
    ] = [],  # noqa: B006  typer copies it
    max_rejected: Annotated[float, typer.Option(help="Share of malformed rows of --input that may be.")] = 0.01,
    as_json: Json = False,
) -> None:
    """Evaluate a run's best weights, or an artifact, on a split; or an artifact on raw rows with labels."""
    from recsys_emb.data.unknown import unknown_warnings
    from recsys_emb.report import metrics_table
    from recsys_emb.serving import evaluate_artifact, is_artifact, load_artifact
    from recsys_emb.training.run import evaluate as run_evaluation
    from recsys_emb.training.run_dir import load_run

    if input is not None:
        if data is not None:
            raise UserError("--input and --data: give one of them")
        _evaluate_input(run, input, by, max_rejected, as_json)
        return
    if by:
        raise UserError("--by: is of raw rows; give them with --input")
    if is_artifact(run):
        figures = evaluate_artifact(load_artifact(run), split, data)
    else:
        figures = run_evaluation(load_run(run), split, data)
    warn(unknown_warnings(figures["unknown_share"]))
    if as_json:
        _print_json(figures)
    else:
        Console().print(metrics_table(figures, run))


@app.command()
def importance(
    run: Annotated[Path, typer.Argument(help="A run folder or an artifact.", metavar="RUN_OR_ARTIFACT")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "valid",
    data: Annotated[Path | None, typer.Option(help="Another prepared dataset with the same vocabularies.")] = None,
    permutations: Annotated[int, typer.Option(min=1, help="Of each field.")] = 5,
    rows: Annotated[int, typer.Option(min=2, help="Rows of the split, drawn at random.")] = 100_000,
    out: Annotated[Path | None, typer.Option(help="HTML page to write, with a plot.")] = None,
    as_json: Json = False,
) -> None:
    """What each field is worth to a model: AUC lost when its values change rows, beside its bytes."""
    from recsys_emb.data.cli import show_progress
    from recsys_emb.report.importance_page import importance_page, importance_table
    from recsys_emb.serving import field_importance

    with show_progress(quiet=as_json) as report:
        done = None if report is None else lambda now, all_of: report("permuting", now, all_of)
        figures = field_importance(run, split, data, permutations, rows, done)
    if out is not None:
        importance_page(figures, run, out)
    if as_json:
        _print_json(figures)
    else:
        Console().print(importance_table(figures, run))
        if out is not None:
            print(f"The page with the plot: {out}")


def _evaluate_input(artifact: Path, input: Path, by: list[str], max_rejected: float, as_json: bool) -> None:
    from recsys_emb.data.cli import show_progress
    from recsys_emb.data.sources.base import Note
    from recsys_emb.data.unknown import unknown_warnings
    from recsys_emb.report import input_tables
    from recsys_emb.serving import evaluate_input, load_artifact

    with show_progress(quiet=as_json) as report:
        done = None if report is None else lambda rows: report("evaluating", rows, None)
        figures = evaluate_input(load_artifact(artifact), input, by, max_rejected, done)
    warn([*(str(Note(**note)) for note in figures["notes"]), *unknown_warnings(figures["unknown_share"])])
    if as_json:
        _print_json(figures)
    else:
        for table in input_tables(figures):
            Console().print(table)


@app.command()
def validate(config: Config, overrides: Overrides = [], as_json: Json = False) -> None:  # noqa: B006
    """Check a config, its dataset and its memory budget without training."""
    from recsys_emb.config import load_config
    from recsys_emb.report import embedding_size
    from recsys_emb.training.run import check, embedding_figures

    parsed = load_config(config, overrides)
    planned, schema = check(parsed)
    figures = embedding_figures(planned.build("meta"))
    if as_json:
        _print_json({"valid": True, **{key: figures[key] for key in ("serving_bytes", "full_bytes", "ratio")}})
    else:
        print(
            f"{config} is valid: {parsed.model.name} on {len(schema.dense)} dense and {len(schema.embedded)} embedded "
            f"fields, {parsed.embedding.backend} embeddings of {embedding_size(figures)}"
        )


# -- serving ----------------------------------------------------------------------------------------------------------

app.command()(compact)
app.command()(predict)
app.command()(serve)
app.command()(export)


# -- looking ----------------------------------------------------------------------------------------------------------


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Finished run folders, or artifacts.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="Write an HTML page here, and the plot as PNG beside it.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="One more run: how far each AUC is from its own, with a 95 % interval.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs: what differs, memory against AUC, and a page with the plots."""
    from recsys_emb.report import compare as compare_runs
    from recsys_emb.report import compare_table

    rows = compare_runs(runs, out, against)
    if as_json:
        _print_json({"runs": rows})
    else:
        Console().print(compare_table(rows, Console().width))


@app.command()
def backends(
    name: Annotated[str | None, typer.Argument(help="One of them: its options, with their defaults.")] = None,
    as_json: Json = False,
) -> None:
    """List the embedding backends, and the methods that compress a trained one (`recsys-emb compact`)."""
    from recsys_emb.embeddings import backend_registry
    from recsys_emb.embeddings.posttraining import posttraining_registry

    _print_plugins(name, as_json, backends=backend_registry, post_training=posttraining_registry)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One of them: its options, with their defaults.")] = None,
    as_json: Json = False,
) -> None:
    """List the CTR models."""
    from recsys_emb.models import model_registry

    _print_plugins(name, as_json, models=model_registry)


def _print_plugins(name: str | None, as_json: bool, **registries: Any) -> None:
    from recsys_emb.report import options_table, plugins_table

    if name is not None:
        first, *others = registries.values()
        registry = next((r for r in others if name in r.names()), first)
        described = {**registry.describe(name), "options": registry.options(name)}
        if as_json:
            _print_json(described)
        else:
            Console().print(options_table(registry.kind, described))
        return
    listed = {key: [registry.describe(name) for name in registry.names()] for key, registry in registries.items()}
    if as_json:
        _print_json(listed)
        return
    for key, rows in listed.items():
        Console().print(plugins_table(registries[key].kind, rows))
        if key != list(listed)[-1]:
            print()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the runs and the report.")] = Path("demo"),
    rows: Annotated[int, typer.Option(min=1000, help="Rows of synthetic clicks.")] = 300_000,
    as_json: Json = False,
) -> None:
    """Make synthetic clicks, train DeepFM with every embedding backend on them and write a report."""
    from recsys_emb.demo import run_demo
    from recsys_emb.report import compare_table
    from recsys_emb.training.progress import reporter_of

    compared = run_demo(out, rows, lambda title: reporter_of(title, as_json), lambda text: print(text, file=sys.stderr))
    if as_json:
        _print_json({"runs": compared})
    else:
        Console().print(compare_table(compared, Console().width))
        print(f"The report with the plot: {out / 'report.html'}")


# -- commands of other packages ---------------------------------------------------------------------------------------

app.add_typer(data, name="data", help="Prepare click logs and look at prepared datasets.")
app.command()(search)
app.command(cls=ManyValues)(sweep)
app.command()(plan)
