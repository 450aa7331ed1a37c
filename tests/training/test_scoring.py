"""Scorer: which rows, and that the score is their AUC."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.store import open_dataset
from recsys_emb.training.scoring import Scorer
from recsys_emb.training.task import ClickThrough
from tests.builders import make_model


@pytest.mark.parametrize(("rows", "batches"), [(None, range(10)), (1000, range(10)), (80, (0, 3, 6)), (40, (0, 5))])
def test_rows_are_spread_over_the_split(prepared: Path, rows: int | None, batches: list[int]) -> None:
    """Of ten batches of about 30."""
    dataset = open_dataset(prepared)
    split = dataset.split("valid")
    loader = BatchLoader(split, dataset.schema, -(-len(split) // 10))
    model = make_model("dcnv2", dataset.schema)
    every = list(loader)
    assert len(every) == 10
    logits, labels = [], []
    with torch.no_grad():
        for i in batches:
            logits.append(model.eval()(every[i]))
            labels.append(every[i].labels)
    expected = roc_auc_score(torch.cat(labels).numpy(), torch.cat(logits).numpy())
    model.train()
    scorer = Scorer(ClickThrough(), model, loader, rows, "fp32")
    assert scorer() == pytest.approx(expected, abs=1e-12)
    assert scorer() == scorer()
    assert model.training
