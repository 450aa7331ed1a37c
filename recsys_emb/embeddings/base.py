"""The contract of an embedding backend: one abstract method, ``lookup``; everything else has a default.

Words: a *table* is logical, N ids that embed to D columns (TorchRec's ``EmbeddingBagConfig``). A *group* is a set of
tables of one width that one backend serves, so that methods may share memory between tables. N, D, T stand for ids,
columns and tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from recsys_emb.embeddings.constants import Constants
from recsys_emb.embeddings.counts import check_ids
from recsys_emb.embeddings.stages import Stage, Train
from recsys_emb.errors import SettingError, UserError
from recsys_emb.registry import Registry

Role = Literal["weight", "arch", "threshold", "scale"]

Stats = Mapping[str, np.ndarray]
"""Per table name, int64 [num_embeddings]: how often each id occurs in the training split."""


def falls_with_id(counts: np.ndarray) -> bool:
    """Whether a table's counts fall from id 1 on, as an encoder numbers ids; id 0 is out-of-vocabulary."""
    return bool((counts[1:-1] >= counts[2:]).all())


@dataclass(frozen=True)
class TableSpec:
    """One logical table.

    ``init_std`` is the standard deviation that a full table would start with; methods that factorise or share rows
    scale their parts so that a looked-up row has it. ``init_fn`` (TorchRec's) overrides it where rows are stored.
    ``hashed`` ids are 63-bit hashes: there is no list of them.
    """

    name: str
    num_embeddings: int
    init_std: float = 0.01
    init_fn: Callable[[Tensor], Tensor | None] | None = None
    hashed: bool = False


@dataclass(frozen=True)
class GroupSpec:
    """Tables of one width, served by one backend.

    ``first_order``: the last of the ``embedding_dim`` columns is not part of a vector but each id's own weight, so
    methods that narrow vectors leave it alone.
    """

    tables: tuple[TableSpec, ...]
    embedding_dim: int
    first_order: bool = False

    @property
    def num_embeddings(self) -> int:
        return sum(t.num_embeddings for t in self.tables)

    @property
    def vector_dim(self) -> int:
        """Columns of a vector: all but a first-order one, unless there is no other."""
        return max(1, self.embedding_dim - self.first_order)

    def columns(self, width: int) -> int:
        """Stored columns of a table whose vectors have ``width``: a first-order one is kept at every width but 0."""
        return width + self.embedding_dim - self.vector_dim if width else 0

    @property
    def full_bytes(self) -> int:
        """Bytes of the uncompressed fp32 tables, what a budget's ratio refers to."""
        return 4 * self.embedding_dim * self.num_embeddings

    @property
    def hashed(self) -> bool:
        """Some table's ids are 63-bit hashes, so there is no full size."""
        return any(t.hashed for t in self.tables)


@dataclass(frozen=True)
class StorageItem:
    """One stored array of the serving form."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that one rule trains; ``role`` lets a run give each kind its own learning rate."""

    role: Role
    params: list[nn.Parameter]
    lr_scale: float = 1.0


@dataclass(frozen=True)
class FieldReport:
    """How one table, or a part of it, is stored.

    Attributes:
        table: its name; ``(shared)`` for what all tables of the group share.
        ids: how many ids it has.
        rows: stored rows.
        width: columns of a stored row.
        bytes: what it adds to ``serving_bytes``.
        form: how ids become vectors, e.g. ``full``, ``hashed``.
    """

    table: str
    ids: int
    rows: int
    width: int
    bytes: int
    form: str


class BackendConfig(BaseModel):
    """Options of a backend; sizes left None are filled by ``plan``. Each backend extends this."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Candidates(Protocol):
    """The forms of other widths that one trained backend holds, to be scored without training them."""

    choices: tuple[int, ...]
    """Widths that training drew from."""

    def use(self, widths: Sequence[int]) -> None:
        """Lookups outside training give this candidate from now on; one width, 0 to V, per table."""

    def nbytes(self, widths: Sequence[int]) -> int:
        """What the candidate would take when served."""


C = TypeVar("C", bound=BackendConfig)


def alone(values: Tensor) -> Tensor:
    """What all processes have together, of one process."""
    return values


class EmbeddingBackend(Constants, ABC, Generic[C]):
    """The embedding of one group of tables.

    A subclass implements ``lookup``, and usually ``plan`` and a ``Config``. The trainer, the collections and the
    artifact call the rest blindly.

    Args:
        spec: the tables.
        config: as returned by ``plan``, all sizes fixed.
        device: where parameters are made; ``meta`` allocates nothing.

    Attributes:
        table_sizes: int64 [T], how many ids each has.
        total: sums a tensor over the processes that train together, with its gradient; as many calls on each.
        gathered: the rows [n, ...] of all of these processes one after another, the same on each.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """What it does, in a few words for lists."""
    Config: ClassVar[type[BackendConfig]] = BackendConfig
    fitted: ClassVar[tuple[str, ...]] = ()
    """Options that training or fitting finds and a user cannot set; an artifact has them."""
    needs_id_list: ClassVar[bool] = True
    """False for methods that work on 63-bit hashes of values never listed."""
    grows: ClassVar[bool] = False
    """Trained weights can go on in tables of more ids (``grown``)."""

    def __init__(self, spec: GroupSpec, config: C, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        self.table_sizes = torch.tensor([t.num_embeddings for t in spec.tables])
        self.total: Callable[[Tensor], Tensor] = alone
        self.gathered: Callable[[Tensor], Tensor] = alone

    # -- the one method a backend must have ---------------------------------------------------------------------------

    @abstractmethod
    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """Embeds ids.

        Args:
            ids: int64 [N], each table's own ids (0..num_embeddings-1), table-major.
            counts: T numbers: how many of the ids belong to each table of the group.

        Returns:
            float [N, embedding_dim].

        Example:
            A batch with two users and three items::

                table    user      item
                ids    [ 4  9 |  1  1  3 ]    int64 [5]
                counts [  2   |     3    ]    a tuple of ints, one a table
                ->     [ u4 u9 | i1 i1 i3 ]   float [5, embedding_dim]
        """

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """``lookup`` after a check of the ids. Raises IndexError naming table, id and size."""
        return self.lookup(check_ids(ids, counts, [t.name for t in self.spec.tables], self.table_sizes), counts)

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: C, stats: Stats | None = None) -> int:
        """Bytes of the smallest serving form that these options allow; of methods of one size, its bytes.

        Arguments and errors as in ``plan``.
        """
        return cls(spec, cls.plan(spec, config, None, stats), "meta").serving_bytes()

    @classmethod
    def plan(cls, spec: GroupSpec, config: C, budget: int | None = None, stats: Stats | None = None) -> C:
        """Memory budget -> sizes; pure, allocates nothing, instant for 33 million ids.

        Args:
            spec: the tables.
            config: the user's options.
            budget: bytes that the serving form may take at most, no less than ``min_bytes``; None leaves the method's
                own default.
            stats: id counts of the training split, where known.

        Raises:
            SettingError: options that do not fit the tables.
        """
        return config

    @classmethod
    def grown(cls, config: C, before: GroupSpec, after: GroupSpec) -> C:
        """The sizes with which trained weights go on in tables of more ids.

        The rows of an ``EmbeddingTable``, block by block (``init``), stay those of the ids that had them; a block may
        get more rows behind. All other arrays keep their shapes.

        Args:
            config: the sizes so far.
            before, after: the tables so far, and those with at least as many ids.

        Raises:
            SettingError: this method cannot.
        """
        if not cls.grows:
            able = ", ".join(n for n in backend_registry.names() if backend_registry.get(n).grows)
            raise SettingError("backend", f"{cls.name} cannot go on with more ids; those that can: {able}")
        return config

    def storage(self) -> list[StorageItem]:
        """Every stored array of the serving form. Works on the meta device, so planned bytes need no memory."""
        return [StorageItem(name, tuple(t.shape), t.dtype) for name, t in self.state_dict().items()]

    def serving_bytes(self) -> int:
        return sum(item.nbytes for item in self.storage())

    def describe(self) -> list[FieldReport]:
        """What every table stores; the bytes add up to ``serving_bytes()``."""
        dim = self.spec.embedding_dim
        tables = [FieldReport(t.name, t.num_embeddings, 0, dim, 0, self.name) for t in self.spec.tables]
        return [*tables, FieldReport("(shared)", self.spec.num_embeddings, 0, dim, self.serving_bytes(), self.name)]

    def compact(self) -> EmbeddingBackend[Any]:
        """The serving form: same rows in eval mode, nothing stored beyond ``storage()``."""
        return self

    def see_counts(self, stats: Stats) -> None:
        """Fills the arrays that say which ids are frequent; called where a backend is made to be trained.

        Args:
            stats: the counts that ``plan`` had.
        """

    # -- what training calls ------------------------------------------------------------------------------------------

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        """What a run of this method consists of; by default one training."""
        return (Train(),)

    def search(self, score: Callable[[], float], seed: int) -> EmbeddingBackend[Any]:
        """Looks for the form that the next stage trains; called by a ``Search`` stage, in eval mode.

        Args:
            score: how well the backend's present form predicts, the AUC on validation rows; it may be called often.
            seed: of every random choice: the same seed must find the same form.

        Returns:
            a backend of the same tables with this one's weights. Its sizes are in its ``config``; arrays too large for
            that are buffers.
        """
        raise NotImplementedError(f"{self.name} lists a Search stage but does not search")

    def candidates(self) -> Candidates | None:
        """Forms of other widths that the present weights hold; None for methods that train one form."""
        return None

    def inherit(self, source: EmbeddingBackend[Any]) -> None:
        """Takes the weights of ``source``, the same tables in the form that an earlier stage trained."""
        self.load_state_dict(source.state_dict())

    def param_groups(self) -> list[ParamGroup]:
        """Which rule trains which parameter."""
        return [ParamGroup("weight", list(self.parameters()))]

    def aux_loss(self) -> Tensor | None:
        """A term added to the loss, computed from the last lookup."""
        return None

    def forms(self) -> Iterator[None]:
        """Goes through the forms that a training step looks its batch up in; the mean of their losses is the loss.

        Between two steps of the iteration lookups in training give one of the forms. Most methods have a single one.
        """
        yield

    def after_backward(self, step: int) -> None:
        """Called between backward and the optimizer's step."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step."""

    def after_epoch(self, epoch: int) -> None:
        """Called at the end of every epoch."""

    @property
    def device(self) -> torch.device:
        """Where its arrays are."""
        return next(chain(self.parameters(), self.buffers())).device

    # -- rows in and out ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rows(self, table: int, chunk: int = 1 << 18) -> Iterator[Tensor]:
        """All rows of one table as a serving lookup gives them, float [<= chunk, D], in the order of the ids.

        Raises:
            UserError: the table's ids are hashes, which have no list.
        """
        spec = self.spec.tables[table]
        if spec.hashed:
            raise UserError(f"table {spec.name!r}: its ids are 63-bit hashes, so its rows cannot be listed")
        counts = [0] * len(self.spec.tables)
        was_training = self.training
        self.eval()
        try:
            for start in range(0, spec.num_embeddings, chunk):
                ids = torch.arange(start, min(start + chunk, spec.num_embeddings), device=self.device)
                counts[table] = len(ids)
                yield self.lookup(ids, counts)
        finally:
            self.train(was_training)

    def plain_rows(self, table: int) -> Tensor:
        """One table's rows as they are stored, a view, float [num_embeddings, D]. Only for full tables.

        Raises:
            UserError: this backend has none.
        """
        raise UserError(f"embedding.backend: {self.name} stores no plain rows of {self.spec.tables[table].name!r}")

    def load_rows(self, table: int, rows: Tensor) -> None:
        """Takes one table's rows, float [num_embeddings, D], from elsewhere. Only for backends that store each row.

        Raises:
            UserError: this backend does not.
        """
        raise SettingError("backend", f"{self.name} cannot take the rows of a plain table; full can")


backend_registry: Registry[type[EmbeddingBackend[Any]]] = Registry(
    "backend", "recsys_emb.embeddings.backends", "recsys_emb.backends"
)
register = backend_registry.register
