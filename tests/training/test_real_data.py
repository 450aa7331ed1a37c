"""Real rows from raw file to report."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from recsys_emb.config import parse_config
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.models import list_models
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train


@pytest.fixture(scope="module")
def criteo(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 8,000 rows of Criteo."""
    out = tmp_path_factory.mktemp("criteo") / "prepared"
    manifest = prepare(make_source("criteo", real_data / "criteo-8k/train.txt"), out, min_count=2)
    assert sum(manifest["rows"].values()) == 8000
    assert manifest["rejected"] == 0
    return out


OF_HISTORIES = ("bst", "dien", "din")


@pytest.mark.parametrize("model", [m for m in list_models() if m not in OF_HISTORIES])
def test_every_model_learns_from_criteo_without_a_warning(criteo: Path, tmp_path: Path, model: str) -> None:
    config = parse_config(
        {
            "data": {"path": str(criteo)},
            "model": {"name": model, "embedding_dim": 8},
            "training": {"epochs": 1, "batch_size": 256, "learning_rate": 0.003},
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = train(config, tmp_path / "run", Silent())
    assert report["auc"] > 0.6


def test_din_learns_from_beauty(real_data: Path, tmp_path: Path) -> None:
    schema = Path(__file__).parent.parent.parent / "datasets/amazon/ctr.yaml"
    data = tmp_path / "prepared"
    prepare(make_source("table", real_data / "amazon-beauty/ctr.parquet", schema), data)
    config = parse_config(
        {
            "data": {"path": str(data)},
            "model": {"name": "din", "embedding_dim": 8, "softmax": True},
            "embedding": {"init_std": 1e-4},
            "training": {"epochs": 1, "batch_size": 1024, "l2_embedding": 0.1},
        }
    )
    assert train(config, tmp_path / "run", Silent())["auc"] > 0.65
