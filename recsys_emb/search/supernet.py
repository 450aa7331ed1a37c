"""Scores widths without training them: one model is trained that holds every width of every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from recsys_emb.config import EmbeddingConfig, RunConfig
from recsys_emb.embeddings.backends.field_dim import FieldDimConfig, named_widths
from recsys_emb.embeddings.backends.matryoshka import MatryoshkaConfig, powers_of_two
from recsys_emb.errors import UserError
from recsys_emb.training import runtime
from recsys_emb.training.checkpoint import Checkpoints, load_model
from recsys_emb.training.metrics import Predictions
from recsys_emb.training.run import group_of, train
from recsys_emb.training.run_dir import RunDir
from recsys_emb.training.scoring import Scorer
from recsys_emb.training.stage_runner import recorded_stages, split_loader, stage_model
from recsys_emb.training.task import task_of
from recsys_emb.training.trainer import Reporter

SCORED_ROWS = 40_000
"""Validation rows that a candidate is scored on; more cost more and rank little better."""


class Supernet:
    """A model trained with random nested widths; a candidate is what stays when columns are left out of its vectors.

    Scores are for ranking candidates: one that is trained on its own reaches another AUC. A candidate costs an
    evaluation on validation rows, nearly all of it in the dense part: the gathers are some 5 % of it, so they are done
    again rather than kept.

    Args:
        run: its first stage trained nested widths; it need not be finished.
        rows: score on about so many validation rows, spread evenly over the split and always the same; None for all.

    Attributes:
        tables: their names.
        choices: widths that training drew from.

    Raises:
        UserError: the run has no weights yet, or no nested widths.
    """

    def __init__(self, run: RunDir, rows: int | None = SCORED_ROWS) -> None:
        config, dataset = run.config, run.open_dataset()
        device = runtime.pick_device(config.device)
        precision = runtime.pick_precision(config.training.precision, device)
        runtime.configure(config.seed, precision)
        self._spec = group_of(config, dataset.schema)
        stage = next(iter(recorded_stages(run)), None)
        best = stage and Checkpoints(run.checkpoints(stage)).best()
        if not stage or not best:
            raise UserError(f"{run.path}: no checkpoint yet; continue the run with `recsys-emb train --resume`")
        model = stage_model(run, dataset.schema, self._spec, stage, device)
        load_model(model, best)
        candidates = model.embedding.backend.candidates()
        if candidates is None:
            raise UserError(
                f"{run.path}: {config.embedding.backend} does not train nested widths; matryoshka and optembed do"
            )
        self._candidates = candidates
        self._score = Scorer(task_of(config), model, split_loader(dataset, "valid", config), rows, precision)
        self.tables = [t.name for t in self._spec.tables]
        self.choices = candidates.choices

    @classmethod
    def open(cls, path: Path, rows: int | None = SCORED_ROWS) -> Supernet:
        """The supernet of a run of ``matryoshka``, or of the first stage of a run of ``optembed``."""
        return cls(RunDir.open(path), rows)

    @classmethod
    def train(
        cls,
        config: RunConfig,
        out: Path,
        reporter: Reporter,
        resume: bool = False,
        choices: Sequence[int] | None = None,
        rows: int | None = SCORED_ROWS,
    ) -> Supernet:
        """Trains the supernet of a run: its data, model and training, on ``matryoshka`` instead of its own backend.

        Args:
            config: the run.
            out: the folder of the supernet's run; its test split is left alone.
            reporter: is told of steps and evaluations.
            resume: continue the one in ``out``.
            choices: widths to draw from; 0 and the powers of two up to D when absent.
            rows: as above.
        """
        most = group_of(config, config.data.open().schema).vector_dim
        options = MatryoshkaConfig(choices=tuple(choices or (0, *powers_of_two(most))))
        embedding = EmbeddingConfig(backend="matryoshka", init_std=config.embedding.init_std, options=options)
        train(config.model_copy(update={"embedding": embedding}), out, reporter, resume, test=False)
        return cls.open(out, rows)

    def score(self, widths: Mapping[str, int]) -> float:
        """The main metric on validation rows at these columns of each table, 0 to D; tables not named keep D.

        Raises:
            UserError: no such table, or too wide.
        """
        self._candidates.use(self._of(widths))
        return self._score()

    def predictions(self, widths: Mapping[str, int]) -> Predictions:
        """What ``score`` is the AUC of."""
        self._candidates.use(self._of(widths))
        return self._score.predictions()

    def serving_bytes(self, widths: Mapping[str, int]) -> int:
        """What the candidate takes when it is trained and served: of ``matryoshka`` on ``field_dim``, of ``optembed``
        as it would be kept under the run's budget."""
        return self._candidates.nbytes(self._of(widths))

    def _of(self, widths: Mapping[str, int]) -> list[int]:
        return list(named_widths(self._spec, FieldDimConfig(widths=dict(widths))).values())
