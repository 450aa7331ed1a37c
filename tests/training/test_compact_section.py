"""A run with a compact section: trained, made smaller, trained on; and the same after a run that ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recsys_emb.config import CompactConfig, RunConfig, parse_config
from recsys_emb.errors import UserError
from recsys_emb.serving import load_artifact, write_artifact
from recsys_emb.training import run as running
from recsys_emb.training.continuation import compacted_run
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.stop import StopMark, Stopped
from recsys_emb.training.trainer import TrainingState

COMPACT: dict[str, Any] = {"method": "quantized_svd", "budget": 0.3, "finetune": {"epochs": 2, "distil": 0.5}}


def config_for(prepared: Path, compact: dict[str, Any] | None) -> RunConfig:
    return parse_config(
        {
            "data": {"path": str(prepared)},
            "model": {"name": "deepfm", "embedding_dim": 8, "hidden": [8]},
            "training": {"epochs": 2, "batch_size": 500, "precision": "fp32"},
            "compact": compact,
            "device": "cpu",
        }
    )


class StopIn(Silent):
    """Asks to stop after so many steps of training on."""

    def __init__(self, stop: StopMark, steps: int) -> None:
        self.stop, self.left = stop, steps

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        self.left -= 1
        if not self.left:
            self.stop.signal = 15


def test_one_command_leads_to_a_small_artifact_and_a_killed_one_to_the_same(prepared: Path, tmp_path: Path) -> None:
    config = config_for(prepared, COMPACT)
    report = running.train(config, tmp_path / "run", Silent())
    assert [s["name"] for s in report["stages"]] == ["train", "compress", "finetune", "finetuned"]
    assert report["serving_bytes"] <= 0.3 * report["full_bytes"]
    assert (report["backend"], report["method"], report["budget"]) == ("full+quantized_svd", "quantized_svd", 0.3)
    made = write_artifact(load_run(tmp_path / "run"), tmp_path / "artifact")
    for key in ("backend", "method", "budget"):
        assert made[key] == report[key]
    assert made["serving_bytes"] == report["serving_bytes"] == load_artifact(tmp_path / "artifact").serving_bytes
    assert made["auc"] == pytest.approx(report["auc"], abs=1e-9)
    assert made["logit_error"]["max"] == 0

    stop = StopMark()
    with pytest.raises(Stopped):  # in the training that follows the compression
        running.train(config, tmp_path / "stopped", StopIn(stop, report["stages"][0]["steps"] + 3), stop=stop)
    assert running.train(config, tmp_path / "stopped", Silent(), resume=True)["auc"] == report["auc"]

    plain = running.train(config_for(prepared, None), tmp_path / "plain", Silent())
    later = compacted_run(load_run(tmp_path / "plain"), tmp_path / "later", config.compact, Silent())  # type: ignore[arg-type]
    assert later.report["auc"] == report["auc"]
    assert later.report["steps"] == report["steps"] > plain["steps"]
    assert load_run(tmp_path / "plain").report == plain


def test_nothing_is_lost_when_training_on_gains_nothing(prepared: Path, tmp_path: Path) -> None:
    harmful = {**COMPACT, "finetune": {"epochs": 1, "learning_rate": 30.0, "distil": 0.0}}
    report = running.train(config_for(prepared, harmful), tmp_path / "run", Silent())
    compressed, finetuned = (s["valid_auc"] for s in report["stages"][1:3])
    assert finetuned >= compressed


@pytest.mark.parametrize(
    ("compact", "message"),
    [
        ({"method": "pqq"}, "post-training method.* 'pqq'"),
        ({"method": "svd", "options": {"bits": 4}}, r"compact.options.bits: unknown key.*; allowed: .*ranks"),
        ({"method": "svd", "budget": 0}, "compact.budget: 0 is out of range; allowed: a ratio"),
        ({"method": "svd", "finetune": {"distil": 2}}, "compact.finetune.distil: .* less than or equal to 1, got 2"),
        ({"method": "svd", "budget": "10B"}, "compact.budget: svd cannot fit in 10 bytes; the least it can reach is"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(
    prepared: Path, tmp_path: Path, compact: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        running.train(config_for(prepared, compact), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_run_is_made_smaller_once(prepared: Path, tmp_path: Path) -> None:
    running.train(config_for(prepared, {"method": "drop_unseen"}), tmp_path / "run", Silent())
    with pytest.raises(UserError, match="made smaller already"):
        compacted_run(load_run(tmp_path / "run"), tmp_path / "more", CompactConfig(method="int4"), Silent())
