"""What a process sets once before it trains: device, arithmetic, allocator, seeds."""

from __future__ import annotations

import os
import platform
import resource
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from recsys_emb.allocator import keep_freed_memory
from recsys_emb.distributed.launch import local_rank, started_by_torchrun
from recsys_emb.errors import UserError


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one, for each process on a machine another. UserError when there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but torch sees no CUDA device; allowed here: auto, cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank()) if started_by_torchrun() else torch.device("cuda")


def pick_precision(wanted: str, device: torch.device) -> str:
    """``auto`` is bf16 where the processor multiplies bf16 natively, else fp32. It knows, it does not measure.

    A CPU has no tf32 and computes in fp32.
    """
    if wanted == "tf32" and device.type != "cuda":
        return "fp32"
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def configure(seed: int, precision: str) -> None:
    """Seeds torch, picks the fast products that ``precision`` allows, and keeps freed memory for the next step.

    On the CPU ``medium`` selects oneDNN's fp32 kernels, twice as fast as MKL's at the same error, except on processors
    with AMX, where it would round to bf16. A card rounds fp32 products to tf32 only where fp32 was not asked for.
    """
    torch.manual_seed(seed)
    medium = precision == "bf16" or not torch.cpu._is_amx_tile_supported()
    torch.set_float32_matmul_precision("medium" if medium else "highest")  # of the card, too
    backends: Any = torch.backends  # its stubs know less
    backends.cuda.matmul.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    backends.cudnn.allow_tf32 = precision != "fp32"  # by this name torch.export asks for it
    keep_freed_memory()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which the dense part runs."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def reset_peak_rss() -> None:
    """Counts the peak of resident memory from here, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process, since ``reset_peak_rss`` where the system can, else since its start."""
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="utf-8") as file:
        return int(next(line.split()[1] for line in file if line.startswith("VmHWM:"))) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment() -> dict[str, Any]:
    """What a run ran on, for ``env.json``."""
    from importlib.metadata import version

    import recsys_emb

    packages = ("torch", "torchrec", "numpy", "polars", "pyarrow", "pydantic", "safetensors")
    return {
        "recsys_emb": recsys_emb.__version__,
        "python": platform.python_version(),
        "packages": {p: version(p) for p in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
