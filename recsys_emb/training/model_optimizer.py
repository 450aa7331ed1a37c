"""One optimizer over a whole model: row-wise sparse ones for embedding tables, ``torch.optim.Adam`` for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recsys_emb.config import TrainingConfig
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.models.base import CTRModel
from recsys_emb.training.optimizers import TABLE_OPTIMIZERS, TableOptimizer


class ModelOptimizer:
    """Steps every parameter of a model once.

    The backend's ``param_groups`` say by which factor the learning rate of its other parameters differs.
    """

    def __init__(self, model: CTRModel, config: TrainingConfig) -> None:
        tables = [m for m in model.modules() if isinstance(m, EmbeddingTable)]
        in_tables = {id(t.weight) for t in tables}
        scales = {id(p): g.lr_scale for g in model.embedding.backend.param_groups() for p in g.params}
        groups: list[dict[str, object]] = []
        by_scale: dict[float, list[nn.Parameter]] = {}
        for p in model.parameters():
            if id(p) not in in_tables:
                by_scale.setdefault(scales.get(id(p), 1.0), []).append(p)
        for scale, params in by_scale.items():
            groups.append({"params": params, "scale": scale, "weight_decay": config.l2_dense})
        self.tables: list[TableOptimizer] = []
        if config.embedding_optimizer == "dense_adam":
            weights = [t.weight for t in tables]
            groups.append({"params": weights, "scale": 1.0, "weight_decay": config.l2_embedding})
        else:
            cls = TABLE_OPTIMIZERS[config.embedding_optimizer]
            self.tables = [cls(t, config.learning_rate, config.l2_embedding) for t in tables]
        self._max_norm = config.max_grad_norm
        self._clipped = [p for params in by_scale.values() for p in params]
        self.dense = torch.optim.Adam(groups, lr=config.learning_rate, fused=True) if groups else None
        self.set_learning_rate(config.learning_rate)

    def set_learning_rate(self, lr: float) -> None:
        """The rate of the next step; rows that skipped steps are caught up at the rates of those."""
        for table in self.tables:
            table.lr = lr
        for group in self.dense.param_groups if self.dense else ():
            group["lr"] = lr * group["scale"]

    def step(self) -> None:
        """Applies and drops all gradients."""
        if self._max_norm is not None:
            nn.utils.clip_grad_norm_(self._clipped, self._max_norm)
        for table in self.tables:
            table.step()
        if self.dense:
            self.dense.step()
            self.dense.zero_grad(set_to_none=True)

    @property
    def copied(self) -> list[nn.Parameter]:
        """The parameters of which every process has a copy: all but those with a sparse gradient."""
        return [p for group in self.dense.param_groups for p in group["params"]] if self.dense else []

    def discard(self) -> None:
        """Drops gradients of a step that is not taken."""
        for table in self.tables:
            table.discard()
        if self.dense:
            self.dense.zero_grad(set_to_none=True)

    def catch_up(self) -> None:
        """Brings all table rows up to date."""
        for table in self.tables:
            table.catch_up()

    def state_dict(self) -> dict[str, Tensor]:
        """Flat: ``table.I.NAME`` and ``dense.I.NAME``."""
        state = {f"table.{i}.{k}": v for i, t in enumerate(self.tables) for k, v in t.state_dict().items()}
        return state | self._dense_state()

    def _dense_state(self) -> dict[str, Tensor]:
        states = self.dense.state_dict()["state"] if self.dense else {}
        return {f"dense.{i}.{k}": v for i, values in states.items() for k, v in values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Restores ``state_dict()`` after ``steps`` steps. Raises ValueError when it is of another model."""
        parts: dict[str, dict[int, dict[str, Tensor]]] = {"table": {}, "dense": {}}
        for name, value in state.items():
            kind, number, key = name.split(".", 2)
            parts[kind].setdefault(int(number), {})[key] = value
        for i, table in enumerate(self.tables):
            table.load_state_dict(parts["table"].get(i, {}), steps)
        if self.dense:
            self._check_dense(parts["dense"], steps)
            current = self.dense.state_dict()
            self.dense.load_state_dict({"state": parts["dense"], "param_groups": current["param_groups"]})

    def _check_dense(self, states: Mapping[int, Mapping[str, Tensor]], steps: int) -> None:
        """torch takes any state and fails, or starts from zeros, at the next step."""
        if steps and not states:
            raise ValueError("no state of weights outside tables")
        shapes = dict(enumerate(list(p.shape) for p in self.copied))
        for number, values in states.items():
            for name in ("exp_avg", "exp_avg_sq"):
                found = list(values[name].shape)
                if found != shapes.get(number):
                    raise ValueError(f"dense.{number}.{name} has shape {found}, expected {shapes.get(number)}")

    def state_bytes(self) -> int:
        return sum(t.state_bytes() for t in self.tables) + sum(v.nbytes for v in self._dense_state().values())
