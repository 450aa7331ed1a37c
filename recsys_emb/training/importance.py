"""What each field is worth to a trained model: how much worse it predicts when the field's values change rows.

Permutation importance: Breiman, "Random Forests", Machine Learning 45, 2001, section 10; of groups of fields, where one
alone would make rows that cannot be. It says what this model uses: of two fields that tell the same, either may seem
to be worth little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_emb.data.batches import BatchLoader, take_jagged
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.split import Jagged, Split
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel
from recsys_emb.training import metrics
from recsys_emb.training.predict import predict

Done = Callable[[int, int], None]
"""Told how many of how many predictions of all rows are done."""


def importance(
    model: CTRModel,
    schema: DatasetSchema,
    split: Split,
    batch_size: int,
    precision: str,
    permutations: int = 5,
    rows: int | None = None,
    seed: int = 0,
    done: Done | None = None,
) -> dict[str, Any]:
    """Permutation importance of every field.

    Args:
        model: trained, or the serving form.
        schema: the dataset's fields.
        split: whose rows are predicted.
        batch_size: rows at a time.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        permutations: of each field.
        rows: so many of the split's rows, drawn at random; None for all.
        seed: of that draw and of the permutations.
        done: told of the progress.

    Returns:
        ``rows``, ``permutations``, ``auc``, ``logloss``, and ``fields``, the most important first. Each has ``field``
        (aligned sequences, which move together, are joined by ``+``); ``auc_lost`` and ``logloss_gained``, means over
        the permutations; ``stderr`` of ``auc_lost``, of other rows (DeLong) and other permutations together;
        ``bytes`` of its table when served, where a method's tables share memory by their ids, and ``auc_per_byte``,
        None for dense fields; ``shares_table_with``, other fields whose bytes these are, too.

    Raises:
        UserError: fewer than one permutation, or rows of one class.
    """
    if permutations < 1:
        raise UserError(f"--permutations {permutations}: must be 1 or more")
    generator = torch.Generator().manual_seed(seed)
    n = len(split)
    if rows is not None and rows < n:
        split = selected(split, torch.randperm(n, generator=generator)[:rows].sort().values)
        n = rows

    def predicted(changed: Split) -> metrics.Predictions:
        return predict(model, BatchLoader(changed, schema, batch_size), precision)

    before = predicted(split)
    loss = metrics.logloss(before.logits, before.labels, before.weights)
    groups = moved_together(schema)
    table_bytes = bytes_of_tables(model.embedding.backend)
    found = []
    for number, fields in enumerate(groups):
        lost, variances, gained = [], [], []
        for turn in range(permutations):
            after = predicted(permuted(split, schema, fields, torch.randperm(n, generator=generator)))
            change, error = metrics.auc_change(before, after)
            lost.append(-change)
            variances.append(error**2)
            gained.append(metrics.logloss(after.logits, after.labels, after.weights) - loss)
            if done is not None:
                done(number * permutations + turn + 1, len(groups) * permutations)
        among = float(np.var(lost, ddof=1)) / permutations if permutations > 1 else 0.0
        of = {f.name: f.vocabulary for f in schema.embedded}
        tables = {of[name] for name in fields if name in of}
        nbytes = sum(table_bytes[name] for name in tables) if tables else None
        auc_lost = float(np.mean(lost))
        found.append(
            {
                "field": "+".join(fields),
                "auc_lost": auc_lost,
                "stderr": math.sqrt(float(np.mean(variances)) + among),
                "logloss_gained": float(np.mean(gained)),
                "bytes": nbytes,
                "auc_per_byte": auc_lost / nbytes if nbytes else None,
                "shares_table_with": [name for name, t in of.items() if t in tables and name not in fields],
            }
        )
    return {
        "rows": n,
        "permutations": permutations,
        "auc": metrics.auc(before.logits, before.labels, before.weights),
        "logloss": loss,
        "fields": sorted(found, key=lambda row: -row["auc_lost"]),
    }


def moved_together(schema: DatasetSchema) -> list[tuple[str, ...]]:
    """All fields, in groups that are permuted as one: aligned sequences together, all others alone."""
    groups: dict[str, list[str]] = {name: [name] for name in (*schema.dense, *schema.sparse_keys)}
    first: dict[str, str] = {}
    for field in schema.sequences:
        first[field.name] = field.name if field.aligned_with is None else first[field.aligned_with]
        groups.setdefault(first[field.name], []).append(field.name)
    return [tuple(names) for names in groups.values()]


def permuted(split: Split, schema: DatasetSchema, fields: Sequence[str], order: Tensor) -> Split:
    """The split where row i has these fields' values of row ``order[i]``, lists as a whole."""
    single = [f.name for f in schema.single_valued]
    dense, ids, jagged = split.dense, split.ids, dict(split.jagged)
    for name in fields:
        if name in jagged:
            jagged[name] = _of_rows(split.jagged[name], order)
        elif name in single:
            ids = ids.clone()
            ids[:, single.index(name)] = split.ids[order, single.index(name)]
        else:
            dense = dense.clone()
            dense[:, schema.dense.index(name)] = split.dense[order, schema.dense.index(name)]
    return replace(split, dense=dense, ids=ids, jagged=jagged)


def selected(split: Split, rows: Tensor) -> Split:
    """These rows, int64 [n], in memory."""
    return Split(
        name=split.name,
        labels=split.labels[rows],
        weights=None if split.weights is None else split.weights[rows],
        dense=split.dense[rows],
        ids=split.ids[rows],
        jagged={name: _of_rows(values, rows) for name, values in split.jagged.items()},
    )


def bytes_of_tables(backend: EmbeddingBackend[Any]) -> dict[str, int]:
    """Serving bytes by table; what tables share is divided by their ids, and all add up to ``serving_bytes``."""
    served = backend.compact()
    tables = served.spec.tables
    own = dict.fromkeys((t.name for t in tables), 0)
    shared = 0
    for part in served.describe():
        if part.table in own:
            own[part.table] += part.bytes
        else:
            shared += part.bytes
    ids = sum(t.num_embeddings for t in tables)
    ends = [shared * sum(t.num_embeddings for t in tables[: i + 1]) // ids for i in range(len(tables))]
    return {t.name: own[t.name] + end - start for t, start, end in zip(tables, [0, *ends], ends)}


def _of_rows(field: Jagged, rows: Tensor) -> Jagged:
    values, lengths = take_jagged(field, rows)
    return Jagged(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
