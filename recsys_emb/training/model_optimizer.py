"""One optimizer over a whole model: row-wise sparse ones for embedding tables, ``torch.optim.Adam`` for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recsys_emb.config import TrainingConfig
from recsys_emb.embeddings.base import EmbeddingBackend, Role
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.models.base import CTRModel
from recsys_emb.training.optimizers import TABLE_OPTIMIZERS, TableOptimizer


class ModelOptimizer:
    """Steps every parameter of a model once.

    The learning rate of the backend's parameters, those in tables and others, differs by the factor that their
    ``ParamGroup`` has and by the one that the config has for their role.

    Args:
        model: on its device.
        config: the training section.
        bilevel: architecture parameters, those of role ``arch``, take steps of their own, ``step_arch``; ``step``
            leaves them alone.

    Raises:
        ValueError: the backend's ``param_groups`` leave parameters out, or have no architecture parameters to step.
    """

    def __init__(self, model: CTRModel, config: TrainingConfig, bilevel: bool = False) -> None:
        tables = [m for m in model.modules() if isinstance(m, EmbeddingTable)]
        scales = _scales(model.embedding.backend, config)
        in_tables = {id(t.weight) for t in tables}
        apart = _of_role(model.embedding.backend, "arch") if bilevel else []
        elsewhere = in_tables | {id(p) for p in apart}
        others = [p for p in model.parameters() if id(p) not in elsewhere]
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
        self.arch: torch.optim.Adam | None = None
        if bilevel:
            if not apart:
                raise ValueError(f"{model.embedding.backend.name}: a bilevel stage, and no parameters of role arch")
            self.arch = torch.optim.Adam(_by_scale(apart, scales, 0.0), lr=config.learning_rate, fused=True)
        if self.dense and not self.tables:
            for table in tables:
                table.optimizer = _DenseRows(table, self.dense)
        self.set_learning_rate(config.learning_rate)

    def set_learning_rate(self, lr: float) -> None:
        """The rate of the next step; rows that skipped steps are caught up at the rates of those."""
        for table, scale in zip(self.tables, self._table_scales):
            table.lr = lr * scale
        for optimizer in self._adams.values():
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]

    def step(self) -> None:
        """Applies and drops all gradients."""
        if self._max_norm is not None:
            nn.utils.clip_grad_norm_(self._clipped, self._max_norm)
        for table in self.tables:
            table.step()
        if self.dense:
            self.dense.step()
        self._drop_gradients()

    def step_arch(self) -> None:
        """Applies the gradients of architecture parameters and drops all."""
        assert self.arch is not None
        self.arch.step()
        for table in self.tables:
            table.discard()
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for optimizer in self._adams.values():
            optimizer.zero_grad(set_to_none=True)

    @property
    def _adams(self) -> dict[str, torch.optim.Adam]:
        named = {"dense": self.dense, "arch": self.arch}
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}

    @property
    def arch_parameters(self) -> list[nn.Parameter]:
        """Those that ``step_arch`` steps; every process has a copy."""
        return [p for group in self.arch.param_groups for p in group["params"]] if self.arch else []

    @property
    def copied(self) -> list[nn.Parameter]:
        """The parameters of which every process has a copy: all but those with a sparse gradient."""
        return [p for group in self.dense.param_groups for p in group["params"]] if self.dense else []

    def catch_up(self) -> None:
        """Brings all table rows up to date."""
        for table in self.tables:
            table.catch_up()

    def state_dict(self) -> dict[str, Tensor]:
        """Flat: ``table.I.NAME``, ``dense.I.NAME`` and ``arch.I.NAME``."""
        state = {f"table.{i}.{k}": v for i, t in enumerate(self.tables) for k, v in t.state_dict().items()}
        return state | self._adam_states()

    def _adam_states(self) -> dict[str, Tensor]:
        states = {name: optimizer.state_dict()["state"] for name, optimizer in self._adams.items()}
        return {
            f"{name}.{i}.{k}": v for name, state in states.items() for i, vs in state.items() for k, v in vs.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Restores ``state_dict()`` after ``steps`` steps. Raises ValueError when it is of another model."""
        parts: dict[str, dict[int, dict[str, Tensor]]] = {"table": {}, "dense": {}, "arch": {}}
        for name, value in state.items():
            kind, number, key = name.split(".", 2)
            parts[kind].setdefault(int(number), {})[key] = value
        for i, table in enumerate(self.tables):
            table.load_state_dict(parts["table"].get(i, {}), steps)
        if self.dense:
            self._check_dense(parts["dense"], steps)
        for name, optimizer in self._adams.items():
            current = optimizer.state_dict()
            optimizer.load_state_dict({"state": parts[name], "param_groups": current["param_groups"]})

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
        return sum(t.state_bytes() for t in self.tables) + sum(v.nbytes for v in self._adam_states().values())


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


def _of_role(backend: EmbeddingBackend[Any], role: Role) -> list[nn.Parameter]:
    return [p for group in backend.param_groups() if group.role == role for p in group.params]


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
