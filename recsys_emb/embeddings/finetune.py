"""A serving form that is trained on: its floats learn, what they are indexed by stays.

Codes, masks, indexes and signs are integers and stay as they are; codebooks, factors, scales and kept rows are floats
and go on, in fp32 while they learn, whatever they are stored as. (PV-Tuning, Malinovskii et al. 2024, section 3, calls
these the continuous and the discrete parameters of a compressed representation.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, FieldReport, StorageItem
from recsys_emb.embeddings.posttraining.base import saturated


class TrainableForm(EmbeddingBackend[BackendConfig]):
    """A serving form whose floats are parameters; ``compact`` gives the form back, its floats as they are stored.

    Args:
        form: a serving form, which is taken over: what it stores as float16 is float32 from now on.
    """

    summary = "a serving form that is trained on"

    def __init__(self, form: EmbeddingBackend[Any]) -> None:
        super().__init__(form.spec, form.config)
        self._storage, self._describe = form.storage(), form.describe()
        self.form = form
        self._stored_as: dict[str, torch.dtype] = {}
        for name, buffer in list(form.named_buffers()):
            if buffer.is_floating_point():
                owner, key = _owner(form, name)
                self._stored_as[name] = buffer.dtype
                delattr(owner, key)
                owner.register_parameter(key, nn.Parameter(buffer.float()))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return self.form.lookup(ids, counts)

    def storage(self) -> list[StorageItem]:
        return self._storage

    def describe(self) -> list[FieldReport]:
        return self._describe

    @torch.no_grad()
    def compact(self) -> EmbeddingBackend[Any]:
        for name, dtype in self._stored_as.items():
            owner, key = _owner(self.form, name)
            value = getattr(owner, key).detach()
            delattr(owner, key)
            owner.register_buffer(key, saturated(value, dtype))
        return self.form


def _owner(form: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds an array, and the array's name there."""
    path, _, key = name.rpartition(".")
    return form.get_submodule(path), key
