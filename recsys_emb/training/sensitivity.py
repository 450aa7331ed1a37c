"""What an error of an embedding row costs, found from gradients on the training split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_emb.data.batches import Batch
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend
from recsys_emb.embeddings.posttraining.base import ErrorCost, Sensitivity
from recsys_emb.models.base import CTRModel

PRIOR = 3.0
"""Lookups that ids of about the same number count for in what is said of one."""


def sensitivity(model: CTRModel, batches: Iterable[Batch]) -> Sensitivity:
    """Per table, from g [D], the gradient of an example's logit by a looked-up row, and the model's probability p:

    metric, the mean over lookups of p (1 - p) g g^T, which is the Gauss-Newton matrix of the cross-entropy whatever the
    labels are: an error e of a row raises the loss by about e S e^T / 2. And relative, what a lookup of an id adds to
    its trace beside the mean lookup: an id of a long history counts less than the target that is scored, and ids differ
    in how often they are the one or the other.

    Args:
        model: trained; it is left as it was.
        batches: rows to look at.
    """
    backend = model.embedding.backend
    device, was_training = next(model.parameters()).device, model.training
    watched = _Watched(backend)
    dim, tables = backend.spec.embedding_dim, backend.spec.tables
    metrics = [torch.zeros(dim, dim, dtype=torch.float64) for _ in tables]
    effects, lookups = ([torch.zeros(t.num_embeddings, dtype=torch.float64) for t in tables] for _ in range(2))
    model.eval()
    model.embedding.backend = watched
    try:
        for batch in batches:
            logits = model(batch.to(device)).float()
            p = torch.sigmoid(logits.detach())
            (gradient,) = torch.autograd.grad((logits * (p * (1 - p)).sqrt()).sum(), watched.rows_given)
            pieces = (x.cpu().split(list(watched.counts)) for x in (watched.ids, gradient))
            for t, (ids, part) in enumerate(zip(*pieces)):
                metrics[t] += (part.t() @ part).double()
                effects[t].index_add_(0, ids, part.square().sum(1).double())
                lookups[t].index_add_(0, ids, torch.ones(len(ids), dtype=torch.float64))
    finally:
        model.embedding.backend = backend
        model.train(was_training)
    return {
        t.name: ErrorCost(metric / count.sum().clamp(min=1), relative_effects(effect, count))
        for t, metric, effect, count in zip(tables, metrics, effects, lookups)
    }


def relative_effects(effects: Tensor, lookups: Tensor) -> Tensor:
    """What a lookup of each id does beside the mean lookup, float32 [N].

    An id seldom looked up is taken to be like the others of its octave of numbers (2^k - 1 to 2^(k+1) - 2), which are
    about as frequent where ids are numbered by falling count.

    Args:
        effects: float64 [N], summed over an id's lookups.
        lookups: float64 [N].
    """
    mean = effects.sum() / lookups.sum().clamp(min=1)
    if not mean:
        return torch.ones(len(effects))
    effects = effects / mean
    octave = torch.arange(1, len(effects) + 1).double().log2().long()
    sums = torch.zeros(int(octave[-1]) + 1, dtype=torch.float64)
    effect, count = (sums.index_add(0, octave, x) for x in (effects, lookups))
    alike = ((effect + PRIOR) / (count + PRIOR))[octave]
    return ((effects + PRIOR * alike) / (lookups + PRIOR)).float()


class _Watched(EmbeddingBackend[BackendConfig]):
    """Gives another backend's rows, and keeps the last ones so that gradients by them can be asked for."""

    summary = "another backend, watched"
    ids: Tensor
    rows_given: Tensor
    counts: Sequence[int]

    def __init__(self, backend: EmbeddingBackend[Any]) -> None:
        super().__init__(backend.spec, backend.config)
        self.backend = backend

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        with torch.no_grad():
            rows = self.backend.lookup(ids, counts)
        self.ids, self.counts = ids, counts
        self.rows_given = rows.detach().float().requires_grad_(True)
        return self.rows_given
