"""What people read of a sweep, written beside its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys_emb.files import write_bytes, write_text
from recsys_emb.report.figure import png
from recsys_emb.sweep.page import sweep_page
from recsys_emb.sweep.plot import plot
from recsys_emb.sweep.results import Result, points, read_results
from recsys_emb.sweep.tables import csv_table, markdown


def write_tables(folder: Path, name: str = "sweep") -> None:
    """``NAME.md``, ``NAME.csv``, ``NAME.png`` and ``report.html`` of the figures in a sweep's folder."""
    results = read_results(folder)[name]
    model = results[0]["config"]["model"]["name"]
    title, drawn = f"# {model}: every method at every budget", f"![AUC against bytes]({name}.png)"
    lines = [title, "", about(results), "", *markdown(results), "", drawn]
    write_text(folder / f"{name}.md", "\n".join(lines) + "\n")
    write_text(folder / f"{name}.csv", csv_table(points(results)))
    write_bytes(folder / f"{name}.png", png(plot(points(results), model)))
    write_text(folder / "report.html", sweep_page(name, results))


def about(results: Sequence[Result]) -> str:
    """A sentence on what the tables show."""
    seeds = ", ".join(str(result["seed"]) for result in results)
    return (
        f"Seeds {seeds}. Test AUC, mean ± standard deviation over the seeds, and the embeddings' bytes relative to the "
        "full tables."
    )
