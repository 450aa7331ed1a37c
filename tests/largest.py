"""How large the tensors of a computation are, to tell whether its cost follows the batch or the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """Records the largest tensor that is made, parameters and views of them aside."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in module.state_dict().values()}
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                t = t._values() if t.is_sparse else t
                if t.untyped_storage().data_ptr() not in self.known:
                    self.numel = max(self.numel, t.numel())
        return out
