"""The figures that reports show: their titles, units and decimals, for the terminal and for HTML alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys_emb.report.intervals import Z95
from recsys_emb.sizes import MB


@dataclass(frozen=True)
class Column:
    """One figure of a report: ``row[key] / unit``, written by ``spec`` (a format specification)."""

    key: str
    title: str
    spec: str
    unit: float = 1
    meaning: str = ""

    def text(self, row: Mapping[str, Any]) -> str:
        """The figure as written, a dash when there is none."""
        value = row.get(self.key)
        return "–" if value is None else format(value / self.unit, self.spec)

    def spread(self, row: Mapping[str, Any]) -> str:
        """``"± 0.0004"``, or nothing for a single run or a figure that does not vary."""
        std = row.get(f"{self.key}_std")
        return f"± {format(std / self.unit, self.spec.lstrip('+'))}" if std else ""


QUALITY = (
    Column("auc", "AUC", ".4f", meaning="area under the ROC curve, test split"),
    Column("auc_error", "±\u00a095\u00a0%", ".4f", 1 / Z95, "half of the AUC's 95 % interval, see above"),
    Column("auc_change", "Difference", "+.4f", meaning="AUC minus that of the run that all are compared with"),
    Column("auc_change_error", "±\u00a095\u00a0%", ".4f", 1 / Z95, "half of the difference's 95 % interval (DeLong)"),
    Column("gauc", "GAUC", ".4f", meaning="AUC within each user, weighted by impressions"),
    Column("bayes_gap", "Gap to Bayes", ".4f", meaning="best possible AUC of the synthetic data minus AUC"),
    Column("logloss", "Logloss", ".4f", meaning="mean binary cross-entropy, nats"),
    Column("ne", "NE", ".4f", meaning="normalised entropy: logloss over the entropy of the base rate"),
    Column("calibration", "Calibration", ".3f", meaning="mean prediction over mean label"),
)
COST = (
    Column("serving_bytes", "Serving (MB)", ",.3f", MB, "all that the embeddings need when served"),
    Column("ratio", "Of full", ".2%", meaning="serving size over that of the fp32 full tables of the same width"),
    Column("vocabulary_bytes", "Vocabulary (MB)", ",.3f", MB, "what turns raw values into ids; apart from serving"),
    Column("served_bytes", "Artifact (MB)", ",.3f", MB, "embeddings, the rest of the model and vocabularies"),
    Column("training_bytes", "Training (MB)", ",.1f", MB, "parameters, buffers and optimizer state while training"),
    Column("peak_rss_bytes", "Peak RSS (MB)", ",.1f", MB, "most memory that the training process held, data included"),
    Column("samples_per_second", "Samples/s", ",.0f", meaning="training speed"),
    Column("train_seconds", "Time (s)", ",.1f", meaning="wall time of training"),
    Column("epochs", "Epochs", ".3g", meaning="passes over the training split"),
)
SIZES_NOTE = (
    "Serving is all that the embeddings need when served. Training is parameters, buffers and optimizer state while "
    "training. Peak RSS is the most memory that the training process held, data included. 1 MB is 1,000,000 bytes."
)
BY_KEY = {column.key: column for column in (*QUALITY, *COST)}


def shown(columns: Iterable[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns that at least one row has a figure for."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def worse_than_the_mean(ne: float) -> str:
    """What a normalised entropy above 1 means."""
    return (
        f"its normalised entropy on the test split is {ne:.4f}, above 1: its probabilities are worse than the mean "
        "click rate said of every row, which AUC does not see; regularise more, or lower the learning rate"
    )
