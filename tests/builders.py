"""Small schemas, random batches and models that tests build on."""

from __future__ import annotations

from typing import Any

import torch
from torchrec import KeyedJaggedTensor

from recsys_emb.data.batches import Batch
from recsys_emb.data.schema import CategoricalField, DatasetSchema, SequenceField
from recsys_emb.embeddings.backends.full import FullBackend
from recsys_emb.embeddings.base import BackendConfig
from recsys_emb.embeddings.fields import group_spec
from recsys_emb.models.base import CTRModel, build_model, model_registry


def tiny_schema(*, dense: int = 2, multi_valued: bool = False, sequences: bool = False) -> DatasetSchema:
    """A user, an item, its category and a city; on request dense features, tags, and three histories.

    ``item_history`` and ``category_history`` are aligned; ``city_history`` stands alone.
    """
    categorical = [CategoricalField(name=n, vocabulary=n) for n in ("user", "item", "category", "city")]
    if multi_valued:
        categorical.append(CategoricalField(name="tags", vocabulary="tag", multi_valued=True))
    history: tuple[SequenceField, ...] = ()
    if sequences:
        # The lone sequence stands between the aligned ones, so that order is not what links them.
        history = (
            SequenceField(name="item_history", vocabulary="item", target="item", max_length=5),
            SequenceField(name="city_history", vocabulary="city", target="city", max_length=3),
            SequenceField(
                name="category_history",
                vocabulary="category",
                target="category",
                max_length=5,
                aligned_with="item_history",
            ),
        )
    return DatasetSchema(
        dense=tuple(f"dense{i}" for i in range(dense)),
        categorical=tuple(categorical),
        sequences=history,
        vocabularies={"user": 30, "item": 20, "category": 7, "city": 5, "tag": 11},
        user="user",
    )


def random_batch(schema: DatasetSchema, rows: int, seed: int = 0) -> Batch:
    """Rows of uniform ids, normal dense values and labels that depend on the first field's id.

    Multi-valued fields and histories have 0 to ``max_length`` (or 4) ids; aligned ones have equal lengths.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: int) -> torch.Tensor:
        return torch.randint(high, (size,), generator=generator)

    sizes = schema.vocabularies
    values = [draw(sizes[f.vocabulary], rows) for f in schema.single_valued]
    lengths = [torch.ones(rows, dtype=torch.int64) for _ in schema.single_valued]
    for field in schema.multi_valued:
        lengths.append(draw(5, rows))
        values.append(draw(sizes[field.vocabulary], int(lengths[-1].sum())))
    sequences = None
    if schema.sequences:
        by_name: dict[str, torch.Tensor] = {}
        history = []
        for s in schema.sequences:
            by_name[s.name] = by_name[s.aligned_with] if s.aligned_with else draw(s.max_length + 1, rows)
            history.append(draw(sizes[s.vocabulary], int(by_name[s.name].sum())))
        sequences = KeyedJaggedTensor(
            schema.sequence_keys, torch.cat(history), lengths=torch.cat(list(by_name.values())), stride=rows
        )
    return Batch(
        dense=torch.randn(rows, len(schema.dense), generator=generator),
        sparse=KeyedJaggedTensor(schema.sparse_keys, torch.cat(values), lengths=torch.cat(lengths), stride=rows),
        sequences=sequences,
        labels=(values[0] % 3 == 0).float(),
        groups=values[0],
    )


def select_rows(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, in the given order."""

    def pick(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        bags = [bag.to_dense() for bag in kjt.to_dict().values()]
        picked = [bag[r] for bag in bags for r in rows]
        lengths = torch.tensor([len(ids) for ids in picked], dtype=torch.int64)
        values = torch.cat([kjt.values()[:0], *picked])
        return KeyedJaggedTensor(kjt.keys(), values, lengths=lengths, stride=len(rows))

    return Batch(
        dense=batch.dense[rows],
        sparse=pick(batch.sparse),
        sequences=None if batch.sequences is None else pick(batch.sequences),
        labels=batch.labels[rows],
        weights=None if batch.weights is None else batch.weights[rows],
        groups=None if batch.groups is None else batch.groups[rows],
    )


def make_model(name: str, schema: DatasetSchema, *, seed: int = 0, init_std: float = 0.5, **options: Any) -> CTRModel:
    """A registered model on a full table, with D = 4 unless told, and weights large enough for every part to matter."""
    cls = model_registry.get(name)
    config = cls.Config.model_validate({"name": name, "embedding_dim": 4, **options})
    torch.manual_seed(seed)
    backend = FullBackend(group_spec(schema, cls.embedding_width(config), init_std), BackendConfig())
    model = build_model(config, schema, backend)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:  # biases, first-order weights and Dice's alpha start at zero and would be unseen
                parameter.normal_(std=init_std)
    return model
