"""What an error of an embedding row costs, found from gradients on the training split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_emb.data.batches import Batch
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend
from recsys_emb.embeddings.posttraining.base import Sensitivity
from recsys_emb.models.base import CTRModel


def sensitivity(model: CTRModel, batches: Iterable[Batch]) -> Sensitivity:
    """Per table the mean over its lookups of p (1 - p) g g^T, g [D] the gradient of the logit by the looked-up row.

    That is the Gauss-Newton matrix of the cross-entropy, whatever the labels are: an error e of a row raises the loss
    by about e S e^T / 2.

    Args:
        model: trained; it is left as it was.
        batches: rows to look at.
    """
    backend = model.embedding.backend
    device, was_training = next(model.parameters()).device, model.training
    watched = _Watched(backend)
    names = [t.name for t in backend.spec.tables]
    dim = backend.spec.embedding_dim
    sums = {name: torch.zeros(dim, dim, dtype=torch.float64) for name in names}
    lookups = dict.fromkeys(names, 0)
    model.eval()
    model.embedding.backend = watched
    try:
        for batch in batches:
            logits = model(batch.to(device)).float()
            p = torch.sigmoid(logits.detach())
            (gradient,) = torch.autograd.grad((logits * (p * (1 - p)).sqrt()).sum(), watched.rows_given)
            for name, part in zip(names, gradient.split(list(watched.counts))):
                sums[name] += (part.t() @ part).double().cpu()
                lookups[name] += len(part)
    finally:
        model.embedding.backend = backend
        model.train(was_training)
    return {name: total / max(lookups[name], 1) for name, total in sums.items()}


class _Watched(EmbeddingBackend[BackendConfig]):
    """Gives another backend's rows, and keeps the last ones so that gradients by them can be asked for."""

    summary = "another backend, watched"
    rows_given: Tensor
    counts: Sequence[int]

    def __init__(self, backend: EmbeddingBackend[Any]) -> None:
        super().__init__(backend.spec, backend.config)
        self.backend = backend

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        with torch.no_grad():
            rows = self.backend.lookup(ids, counts)
        self.rows_given, self.counts = rows.detach().float().requires_grad_(True), counts
        return self.rows_given
