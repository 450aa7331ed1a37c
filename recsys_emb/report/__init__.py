"""Reports on finished runs: one run's page, and many runs compared.

``recsys_emb.report.plots`` draws on matplotlib axes; it is imported when needed, because matplotlib is slow to import.
"""

from recsys_emb.report.compare import compare, terminal_table
from recsys_emb.report.run_page import run_page
from recsys_emb.report.runs import group_by_seed, load_report, load_reports
from recsys_emb.report.sizes import human_bytes

__all__ = [
    "compare",
    "group_by_seed",
    "human_bytes",
    "load_report",
    "load_reports",
    "run_page",
    "terminal_table",
]
