"""Reports on finished runs: one run's page, many runs compared, a search's page, and frames.

``recsys_emb.report.plots`` and ``search_plots`` draw any of them on matplotlib axes; they are imported when needed,
because matplotlib is slow to import.
"""

from recsys_emb.report.columns import worse_than_the_mean
from recsys_emb.report.compare import compare
from recsys_emb.report.compare_table import compare_table
from recsys_emb.report.frames import events_frame, runs_frame, tables_frame, trials_frame
from recsys_emb.report.run_page import run_page
from recsys_emb.report.runs import group_by_seed, load_report, load_reports
from recsys_emb.report.search_page import search_page
from recsys_emb.report.searches_page import searches_page
from recsys_emb.report.terminal import (
    artifact_table,
    embedding_size,
    input_tables,
    metrics_table,
    options_table,
    plugins_table,
    run_table,
)
from recsys_emb.sizes import human_bytes

__all__ = [
    "artifact_table",
    "compare",
    "compare_table",
    "embedding_size",
    "events_frame",
    "group_by_seed",
    "human_bytes",
    "input_tables",
    "load_report",
    "load_reports",
    "metrics_table",
    "options_table",
    "plugins_table",
    "run_page",
    "run_table",
    "runs_frame",
    "search_page",
    "searches_page",
    "tables_frame",
    "trials_frame",
    "worse_than_the_mean",
]
