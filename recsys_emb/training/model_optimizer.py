"""One optimizer over a whole model: row-wise sparse ones for embedding tables, ``torch.optim.Adam`` for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recsys_emb.config import TrainingConfig
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.models.base import CTRModel
from recsys_emb.training.optimizers import TABLE_OPTIMIZERS, TableOptimizer


class ModelOptimizer:
    """Steps every parameter of a model once.

    The learning rate of the backend's parameters, those in tables and others, differs by the factor that their
    ``ParamGroup`` has and by the one that the config has for their role.

    Raises:
        ValueError: the backend's ``param_groups`` leave parameters out.
    """

    def __init__(self, model: CTRModel, config: TrainingConfig) -> None:
        tables = [m for m in model.modules() if isinstance(m, EmbeddingTable)]
        scales = _scales(model.embedding.backend, config)
        in_tables = {id(t.weight) for t in tables}
        others = [p for p in model.parameters() if id(p) not in in_tables]
        groups = _by_scale(others, scales, config.l2_dense)
        self.tables: list[TableOptimizer] = []
        if config.embedding_optimizer == "dense_adam":
            groups += _by_scale([t.weight for t in tables], scales, config.l2_embedding)
        else:
            cls = TABLE_OPTIMIZERS[config.embedding_optimizer]
            self.tables = [cls(t, config.learning_rate, config.l2_embedding) for t in tables]
        self._table_scales = [scales.get(id(t.weight), 1.0) for t in tables]
        self._max_norm = config.max_grad_norm
        self._clipped = others
        self.dense = torch.optim.Adam(groups, lr=config.learning_rate, fused=True) if groups else None
        if self.dense and not self.tables:
            for table in tables:
                table.optimizer = _DenseRows(table, self.dense)
        self.set_learning_rate(config.learning_rate)

    def set_learning_rate(self, lr: float) -> None:
        """The rate of the next step; rows that skipped steps are caught up at the rates of those."""
        for table, scale in zip(self.tables, self._table_scales):
            table.lr = lr * scale
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


class _DenseRows:
    """The rows of a table that ``torch.optim.Adam`` trains, all at every step. See ``RowOptimizer``."""

    def __init__(self, table: EmbeddingTable, adam: torch.optim.Adam) -> None:
        self.weight, self.adam = table.weight, adam

    def before_lookup(self, rows: Tensor) -> None:
        pass

    def current(self, rows: Tensor) -> Tensor:
        return self.weight.detach().index_select(0, rows)

    def row_state(self) -> list[Tensor]:
        return [s for s in self.adam.state[self.weight].values() if s.shape == self.weight.shape]

    def reset(self, rows: Tensor) -> None:
        for state in self.row_state():
            state.index_fill_(0, rows, 0)


def _scales(backend: EmbeddingBackend[Any], config: TrainingConfig) -> dict[int, float]:
    """By which factor the learning rate of each of the backend's parameters differs, by the parameter's id()."""
    scales = {
        id(p): group.lr_scale * config.lr_scales.get(group.role, 1.0)
        for group in backend.param_groups()
        for p in group.params
    }
    left_out = [name for name, p in backend.named_parameters() if id(p) not in scales]
    if left_out:
        raise ValueError(f"{backend.name}: param_groups() leaves out {', '.join(left_out)}")
    return scales


def _by_scale(params: list[nn.Parameter], scales: Mapping[int, float], l2: float) -> list[dict[str, Any]]:
    """Groups of ``torch.optim.Adam``, one for each factor on the learning rate."""
    found: dict[float, list[nn.Parameter]] = {}
    for p in params:
        found.setdefault(scales.get(id(p), 1.0), []).append(p)
    return [{"params": params, "scale": scale, "weight_decay": l2} for scale, params in found.items()]
