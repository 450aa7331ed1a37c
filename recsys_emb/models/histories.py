"""What models of behaviour histories share: which histories go together, with which targets, and padding.

B rows, T ``max_length`` of a history, K columns: D for each of the fields that are aligned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel, Inputs, ModelConfig, model_registry


class History(NamedTuple):
    """Aligned histories of a batch, and their targets, side by side.

    target:  float [B, K]
    values:  float [n, K], row after row, the oldest first
    lengths: int64 [B]
    """

    target: Tensor
    values: Tensor
    lengths: Tensor


class HistoryModel(CTRModel):
    """A model of unpooled histories. Those linked by ``aligned_with`` (items and their categories) go together.

    Attributes:
        histories: names of the sequence fields, each list one group of aligned ones.
        widths: K of each group.
        lengths: T of each group.
    """

    uses_sequences = True

    def __init__(self, config: ModelConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.histories = aligned_groups(schema)
        self.widths = [len(keys) * config.embedding_dim for keys in self.histories]
        by_name = {s.name: s for s in schema.sequences}
        self.lengths = [by_name[keys[0]].max_length for keys in self.histories]
        self.targets = [[embedding.pooled_keys.index(by_name[key].target) for key in keys] for keys in self.histories]

    @classmethod
    def check(cls, config: ModelConfig, schema: DatasetSchema) -> None:
        if not schema.sequences:
            others = [name for name in model_registry.names() if not model_registry.get(name).uses_sequences]
            raise UserError(
                f"model.name: {cls.name} needs a sequence field, but the dataset has none; use {', '.join(others)}"
            )

    def groups(self, x: Inputs) -> Iterator[History]:
        """Each group of a batch."""
        for keys, targets in zip(self.histories, self.targets):
            target = torch.cat([x.fields[:, t] for t in targets], dim=1)
            values = torch.cat([x.sequences[key].values() for key in keys], dim=1)
            yield History(target, values, x.sequences[keys[0]].lengths())


def aligned_groups(schema: DatasetSchema) -> list[list[str]]:
    """Names of the sequence fields, those that ``aligned_with`` links together."""
    groups: list[list[str]] = []
    for field in schema.sequences:
        linked = next((g for g in groups if field.aligned_with in g), None)
        if linked is None:
            groups.append([field.name])
        else:
            linked.append(field.name)
    return groups


def padded(values: Tensor, lengths: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Histories of one length, each at the end of its row, so that slots count back from the present.

    Args:
        values: [n, K], row after row.
        lengths: int64 [B].
        most: T; of longer histories the last T are kept.

    Returns:
        [B, T, K], zeros before a history, and bool [B, T]: where it is.
    """
    batch, n = lengths.shape[0], values.shape[0]
    rows = torch.arange(batch, device=lengths.device).repeat_interleave(lengths, output_size=n)
    slots = torch.arange(n, device=lengths.device) - lengths.cumsum(0).index_select(0, rows) + most
    kept = (slots >= 0)[:, None]
    at = rows * most + slots.clamp(min=0)
    slots_of_rows = values.new_zeros(batch * most, values.shape[1]).index_add(0, at, values * kept)
    there = torch.arange(most, device=lengths.device) >= most - lengths[:, None]
    return slots_of_rows.unflatten(0, (batch, most)), there
