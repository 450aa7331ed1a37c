"""One figure of a sweep: a training, or the trained full tables made smaller."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_emb.config import CompactConfig, RunConfig, parse_config
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.errors import BudgetTooSmall, SettingError
from recsys_emb.files import read_json
from recsys_emb.lock import in_turn
from recsys_emb.serving import load_artifact, write_artifact
from recsys_emb.serving.evaluate import evaluate_artifact
from recsys_emb.sweep.methods import FULL, Choice, Method
from recsys_emb.training.continuation import compacted_run
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import group_of, train
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.stop import StopMark

KEPT = (
    *("auc", "valid_auc", "logloss", "serving_bytes", "vocabulary_bytes", "dense_bytes", "ratio", "training_bytes"),
    *("epochs", "steps", "train_seconds", "trainings", "bayes_auc"),
)
"""Keys of a run's report that a sweep keeps; those without a value are absent."""


@dataclass(frozen=True)
class Cell:
    """A method with one choice of its settings at one budget and seed.

    Attributes:
        base: the config of the sweep.
        runs: where its runs and artifacts are.
        full: the full tables, as this sweep trains them.
    """

    base: RunConfig
    runs: Path
    seed: int
    method: Method
    budget: float | None
    choice: Choice
    full: Method = FULL

    @property
    def folder(self) -> Path:
        """Where its run or artifact is; the same for a trial and the figure that it becomes."""
        number = self.method.choices.index(self.choice)
        name = self.method.name.replace(",", "").replace(" ", "_").replace("/", "_")
        budget = "" if self.budget is None else f"-{self.budget:g}"
        return self.runs / str(self.seed) / f"{name}{budget}" / f"choice-{number}"

    def figures(self, stop: StopMark) -> dict[str, Any]:
        """The figures, or ``error``: why the method cannot be that small, with the ``least_bytes`` that it can reach.

        Raises:
            UserError: anything else that is wrong.
            Stopped: somebody asked; a later call goes on.
        """
        with in_turn(self.folder):
            try:
                made = self._after(stop) if self.method.kind == "after" else self._trained(stop)
            except BudgetTooSmall as error:
                return {"error": error.problem, "least_bytes": error.min_bytes}
            except SettingError as error:
                return {"error": str(error)}
            if self.method != self.full:  # what is made of the full tables needs their weights
                shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return {key: made[key] for key in KEPT if made.get(key) is not None}

    def config(self) -> RunConfig:
        """The base with this method for its embedding. Raises BudgetTooSmall where not even one column fits."""
        tree = self.base.model_dump(mode="json")
        tree["seed"], tree["compact"] = self.seed, None
        tree["training"]["l2_embedding"] *= self.choice.l2
        tree["embedding"] |= {"backend": self.method.uses, "budget": None, "options": self.choice.options}
        if self.method.width is None:
            tree["embedding"]["budget"] = self.budget
        else:
            spec = group_of(self.base, self.base.data.open().schema)
            width = self.method.width(spec, self.budget)
            if width < 1:
                allowed = int((self.budget or 1) * spec.full_bytes)
                raise BudgetTooSmall("a full table", allowed, 4 * spec.num_embeddings * spec.columns(1))
            tree["model"]["embedding_dim"] = width
        return parse_config(tree)

    def _trained(self, stop: StopMark) -> dict[str, Any]:
        """The report of a run, with the bytes of vocabularies that serving it needs, and how many trainings it took."""
        report = train(self.config(), self.folder, Silent(), resume=True, stop=stop)
        form = list(read_json(self.folder / "embedding.json").values())[-1]
        needed = backend_registry.get(form["backend"]).needs_id_list or form["config"].get("importance", False)
        return {
            **report,
            "vocabulary_bytes": report["vocabulary_bytes"] if needed else 0,
            "trainings": sum(stage["steps"] > 0 for stage in report["stages"]),
        }

    def _after(self, stop: StopMark) -> dict[str, Any]:
        """The report of what a post-training method makes of the trained full tables, trained on where asked."""
        full = Cell(self.base, self.runs, self.seed, self.full, None, self.full.choices[0])
        with in_turn(full.folder):
            full._trained(stop)
        options, finetune = self.choice.options, self.choice.finetune
        if finetune is not None:
            tree = {"method": self.method.uses, "budget": self.budget, "options": options, "finetune": finetune}
            compact = CompactConfig.model_validate(tree)
            run = compacted_run(load_run(full.folder), self.folder, compact, Silent(), stop=stop)
            return {**run.report, "trainings": 2}
        shutil.rmtree(self.folder, ignore_errors=True)
        report = write_artifact(load_run(full.folder), self.folder, self.method.uses, self.budget, options)
        valid = evaluate_artifact(load_artifact(self.folder), "valid")
        return {**report, "valid_auc": valid["auc"], "trainings": 1}
