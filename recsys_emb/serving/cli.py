"""Commands that make, serve and export artifacts: `compact`, `predict`, `serve`, `export`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from recsys_emb.data.cli import warn
from recsys_emb.errors import UserError
from recsys_emb.training.stop import stop_on_signals

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def compact(
    run: Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Artifact folder to make.")],
    method: Annotated[
        str | None, typer.Option(help="Post-training method (`recsys-emb backends` lists them). Default: none.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Of the method's result: a ratio such as 0.1, or bytes such as 20MB; total=20MB: of all served."
        ),
    ] = None,
    option: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="Option of the method; repeatable.")] = [],  # noqa: B006  typer copies it
    finetune: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE", help="Train the result on: epochs=4, learning_rate=3e-3, distil=1."),
    ] = [],  # noqa: B006  typer copies it
    vocabulary: Annotated[
        str | None,
        typer.Option(help="exact: raw values; fingerprint: a few bits of each value. Default: the run's, or exact."),
    ] = None,
    fingerprint_bits: Annotated[
        int | None, typer.Option(help="f: 1 in 2^f unknown values is taken for a known one. Default: 8.")
    ] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure the artifact on the test split.")] = True,
    data: Annotated[Path | None, typer.Option(help="Where the run's dataset is now, if it was moved.")] = None,
    as_json: Json = False,
) -> None:
    """Write a finished run as an artifact: the embedding in its serving bytes, the model, the vocabularies.

    With --finetune the compressed form is trained on in OUT.run, which a killed command continues.
    """
    from recsys_emb.config import parse_compact, parse_options
    from recsys_emb.report import artifact_table
    from recsys_emb.serving import write_artifact
    from recsys_emb.serving.vocabularies import vocabulary_form
    from recsys_emb.training.continuation import compacted_run
    from recsys_emb.training.progress import reporter_of
    from recsys_emb.training.run_dir import load_run

    options, trained = parse_options(option), load_run(run)
    kept = vocabulary_form(trained.config, vocabulary, fingerprint_bits)
    if finetune:
        if method is None:
            raise UserError("--finetune: trains what a post-training method made; name one with --method")
        made = parse_compact(method, budget, options, parse_options(finetune, "--finetune"), *kept)
        with stop_on_signals() as stop, reporter_of(f"{method}, trained on", as_json) as reporter:
            trained = compacted_run(trained, out.with_name(f"{out.name}.run"), made, reporter, data, stop)
        method, budget, options = None, None, {}
    report = write_artifact(trained, out, method, budget, options, evaluate, data, vocabulary, fingerprint_bits)
    if as_json:
        print_json({"artifact": str(out), **report})
    else:
        Console().print(artifact_table(report, out))


def predict(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.", metavar="ARTIFACT")],
    out: Annotated[Path, typer.Option(help="Parquet file to write: line, logit, probability.")],
    input: Annotated[
        Path | None, typer.Option(help="File, folder or glob in the format of the dataset's source; labels may lack.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows at a time. Default: that of training.")] = None,
    max_rejected: Annotated[float, typer.Option(help="Share of malformed rows above which nothing is made.")] = 0.01,
    keep: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="Column of the input to pass on to the output; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    as_json: Json = False,
) -> None:
    """Predict the click probability of raw rows, in their order."""
    from recsys_emb.data.cli import show_progress
    from recsys_emb.data.sources.base import Note
    from recsys_emb.data.unknown import unknown_warnings
    from recsys_emb.serving import load_artifact, predict_file

    with show_progress(quiet=as_json) as report:
        done = predict_file(
            load_artifact(artifact),
            input,
            out,
            batch_size,
            max_rejected,
            keep,
            progress=None if report is None else lambda rows: report("predicting", rows, None),
        )
    warn([*(str(Note(**note)) for note in done["notes"]), *unknown_warnings(done["unknown_share"])])
    if as_json:
        print_json(done)
    else:
        note = f", {done['rejected']} rejected, listed in {out}.rejected.tsv" if done["rejected"] else ""
        print(f"{out}: {done['rows']:,} rows in {done['seconds']:.1f} s ({done['rows_per_second']:,.0f} rows/s){note}")


def serve(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder, or a link to one.", metavar="ARTIFACT")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines, too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any that is free.")] = 8000,
    max_body: Annotated[int | None, typer.Option(min=1, help="Bytes of a request's body. Default: 8 MiB.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a request. Default: 10,000.")] = None,
    body_seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Within which a body must have come. Default: 10.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that predict a batch.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Answer HTTP requests with an artifact's predictions, until Ctrl-C or SIGTERM."""
    from recsys_emb.serving.server.limits import Limits

    try:
        from recsys_emb.serving.server.run import run_server
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}; install recsys_emb[serve]") from None
    given: dict[str, Any] = {"body_bytes": max_body, "rows": max_rows, "body_seconds": body_seconds}
    limits = replace(Limits(), **{name: value for name, value in given.items() if value is not None})
    run_server(artifact, host, port, limits, device, threads, lambda at: print(f"{artifact}: {at}", flush=True))


def export(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.", metavar="ARTIFACT")],
    to: Annotated[str, typer.Option(help="torch (a .pt2 of torch.export), onnx, or torchrec.")],
    out: Annotated[Path, typer.Option(help="File or folder to make.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset whose test rows are compared. Default: that of the run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an artifact in a form that other programs load, and compare its predictions."""
    from recsys_emb.serving import load_artifact
    from recsys_emb.serving.exports import export_artifact, exporter
    from recsys_emb.sizes import human_bytes

    done = export_artifact(load_artifact(artifact, "cpu"), exporter(to), out, data)
    if as_json:
        print_json(done)
    else:
        print(
            f"{out}: {human_bytes(done['bytes'])}, where the artifact has {human_bytes(done['serving_bytes'])} of "
            f"embedding and {human_bytes(done['dense_bytes'])} of other weights; the largest difference of a logit on "
            f"{done['compared_on']} is {done['largest_difference']:.1e}"
        )


def print_json(value: Any) -> None:
    print(json.dumps(value))
