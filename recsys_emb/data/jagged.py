"""TorchRec's jagged tensors, made without TorchRec at the start: it takes longer to import than torch.

Whoever has a jagged tensor needs no import to call its methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torchrec import JaggedTensor, KeyedJaggedTensor


def keyed_jagged(
    keys: list[str], values: Tensor, lengths: Tensor, stride: int, per_key: list[int] | None = None
) -> KeyedJaggedTensor:
    """Values [N] of all keys one after another, and lengths [keys x stride].

    ``per_key`` says how many values each key has; without it whoever asks must count, and wait for a card.
    """
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor(keys, values, lengths=lengths, stride=stride, length_per_key=per_key)


def joined(parts: list[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    """The keys of all parts, which have the same stride."""
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor.concat(parts)


def jagged(values: Tensor, lengths: Tensor) -> JaggedTensor:
    """Values [N, ...] and lengths [B]."""
    from torchrec import JaggedTensor

    return JaggedTensor(values, lengths=lengths)
