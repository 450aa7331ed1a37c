"""A card where there is none: tensors that say they are on ``cuda:0`` and compute on the CPU.

Operations that mix them with tensors of the CPU fail, as they would on a card, and what a card makes its host pay for
is counted by line of ``recsys_emb``: *waits*, where the host needs a value that the card has yet to compute, and
*uploads*, small or large. It knows nothing of speed or kernels. One process; random numbers are the CPU's.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
ops = torch.ops.aten

WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "linalg_matrix_exp", "_coalesce", "is_nonzero",
}  # fmt: skip
"""Operations whose result, or its size, the host must know."""
MIXING = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}
"""Operations that take their indices from the host, and so upload them."""


class CardTensor(torch.Tensor):
    """A tensor of the card: the shape of ``held``, which is on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> CardTensor:
        with _disable_current_modes():
            if held.layout == torch.strided:
                shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
            else:
                shape = torch.empty(held.shape, dtype=held.dtype, device="meta")
            # Autograd knows no card here, so it takes these for tensors of the meta device.
            options: dict[str, Any] = {"dispatch_device": True, "device_for_backend_keys": shape.device}
            made = torch.Tensor._make_subclass(cls, shape, False, **options)
        made.held = held
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the card outlived it")

    def __getitem__(self, at: Any) -> Tensor:
        return super().__getitem__(torch.tensor(at, device=DEVICE) if isinstance(at, list) else at)

    def __setitem__(self, at: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            super().__setitem__(at, value)
        else:
            self[at].fill_(value)

    def tolist(self) -> list[Any]:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first")

    # torch makes these from what autograd takes the tensor for

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE, **options})

    def new_empty(self, *size: Any, **options: Any) -> Tensor:
        return torch.empty(*size, **{"dtype": self.dtype, "device": DEVICE, **options})

    def new_zeros(self, *size: Any, **options: Any) -> Tensor:
        return torch.zeros(*size, **{"dtype": self.dtype, "device": DEVICE, **options})


class Card(TorchDispatchMode):
    """Runs what is done with tensors of the card.

    Attributes:
        waits, uploads: how often each line of ``recsys_emb`` waited for the card, or gave it something.
        unpinned: uploads of memory that was not pinned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.uploads, self.unpinned = Counter[str](), Counter[str](), Counter[str]()
        self._pinned = set[int]()

    def reset(self) -> None:
        """Counts from zero."""
        for counter in (self.waits, self.uploads, self.unpinned):
            counter.clear()

    def upload(self, source: Tensor) -> None:
        self.uploads[_line()] += 1
        if source.untyped_storage().data_ptr() not in self._pinned:
            self.unpinned[_line()] += 1

    def pin(self, values: Tensor) -> Tensor:
        """What ``Tensor.pin_memory`` does: a copy in pinned memory."""
        if isinstance(values, CardTensor):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        with _disable_current_modes():
            copy = values.clone(memory_format=torch.contiguous_format)
        self._pinned.add(copy.untyped_storage().data_ptr())
        return copy

    def wait(self) -> None:
        self.waits[_line()] += 1

    def tensor(self, make: Callable[..., Tensor], data: Any, *, device: Any = None, **options: Any) -> Tensor:
        """What ``torch.tensor`` does."""
        if device is None or torch.device(device).type != "cuda":
            return make(data, device=device, **options)
        with _disable_current_modes():
            made = make(data, **options)
        self.upload(made)
        return CardTensor(made)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_card = any(isinstance(x, CardTensor) for x in tensors)
        wanted = kwargs.get("device")
        wanted = None if wanted is None else torch.device(wanted)
        to_card = on_card if wanted is None else wanted.type in ("cuda", "meta")  # by which autograd knows the card
        name = func._schema.name.removeprefix("aten::").removeprefix("prim::")
        if name == "device":
            return torch.device("meta") if on_card else func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            return self._copy(func, args, kwargs, to_card)
        if on_card:
            self._look(name, args, kwargs, tensors)
        if to_card and wanted is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(_held, (args, kwargs))
        out = func(*args, **kwargs)
        known = {id(x.held): x for x in tensors if isinstance(x, CardTensor)}  # of operations in place

        def lifted(x: Any) -> Any:
            if not isinstance(x, Tensor) or not to_card:
                return x
            return known[id(x)] if id(x) in known else CardTensor(x)

        return tree_map(lifted, out)

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any], to_card: bool) -> Tensor:
        """Between devices or on one."""
        in_place = func == ops.copy_.default
        target, source = (args[0], args[1]) if in_place else (None, args[0])
        to_card = isinstance(target, CardTensor) if in_place else to_card
        if to_card and not isinstance(source, CardTensor):
            self.upload(source)
        if not to_card and isinstance(source, CardTensor):
            self.wait()
        if in_place:
            func(*tree_map(_held, args), **kwargs)
            return target  # type: ignore[return-value]
        dropped = ("device", "non_blocking", "pin_memory") if to_card or isinstance(source, CardTensor) else ()
        out = func(_held(source), **{k: v for k, v in kwargs.items() if k not in dropped})
        return CardTensor(out) if to_card else out

    def _look(self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        """Counts, and raises RuntimeError on tensors of two devices."""
        if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.wait()
        for x in tensors:
            if name in MIXING and x.dtype in (torch.bool, torch.uint8) and x is not args[0]:
                self.wait()  # a mask is looked up first
            if isinstance(x, CardTensor) or not x.dim():
                continue
            if name not in MIXING or x is args[0]:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device: {name} got one of {list(x.shape)} on the CPU"
                )
            self.upload(x)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, CardTensor) else x


def _numbered(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``Tensor.to`` that need not ask which card is the current one."""

    def there(x: Any) -> Any:
        return DEVICE if x == "cuda" or (isinstance(x, torch.device) and x.type == "cuda") else x

    return lambda x, *args, **options: to(x, *map(there, args), **{k: there(v) for k, v in options.items()})


def _line() -> str:
    """The innermost line of ``recsys_emb`` that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/recsys_emb/" in file:
            return f"{file.rsplit('/recsys_emb/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class _Stream:
    """A queue of the card's; everything is done at once."""

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass

    def synchronize(self) -> None:
        """Of a copy to the host, which was counted as a wait whether or not it is one."""


class _WithoutGradient:
    """What stands in for ``torch.inference_mode``."""

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(self.before and not self.mode)

    def __exit__(self, *_: Any) -> None:
        torch._C._set_grad_enabled(self.before)


@contextmanager
def pretended_card() -> Iterator[Card]:
    """Inside, ``cuda`` is a device that torch sees; tensors on it are of no use afterwards. So is ``meta``."""
    card, make = Card(), torch.tensor
    stands_in: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "get_device_name": lambda *_: "pretended",
        "get_device_capability": lambda *_: (9, 0),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": lambda *_: nullcontext(),
    }
    with ExitStack() as stack:
        for name, value in stands_in.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "tensor", lambda *a, **k: card.tensor(make, *a, **k)))
        for name in ("__init__", "__enter__", "__exit__"):  # wrapped tensors know no inference mode
            stack.enter_context(mock.patch.object(torch.inference_mode, name, getattr(_WithoutGradient, name)))
        stack.enter_context(mock.patch.object(torch.Tensor, "to", _numbered(torch.Tensor.to)))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda x: card.pin(x)))
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", return_value=None))
        stack.enter_context(card)
        yield card
