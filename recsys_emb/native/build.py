"""Compiles a C++ file on first use, and keeps it in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "-mavx2", "-mfma", "-fopenmp", "-fPIC", "-c")
VECTORS = ("AVX2", "AVX512")
"""What torch says of a processor that can run it."""
_log = logging.getLogger(__name__)


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The compiled file; None where the processor or the compiler is missing, or RECSYS_EMB_NATIVE is 0.

    Takes seconds once, some 10 ms from then on: the cache (``$XDG_CACHE_HOME/recsys_emb``) goes by what was compiled.
    """
    import torch  # knows the processor, and brings the threads; a second that only who compiles waits for

    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if os.environ.get("RECSYS_EMB_NATIVE") == "0" or torch.backends.cpu.get_cpu_capability() not in VECTORS:
        return None
    if compiler is None:
        _log.info("%s: no C++ compiler, so it is done more slowly", source.name)
        return None
    digest = hashlib.blake2b(" ".join((compiler, *FLAGS)).encode() + source.read_bytes(), digest_size=8).hexdigest()
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        target = root / "recsys_emb" / f"{source.stem}-{digest}.so"
        if not target.exists():
            _compile(compiler, source, target)
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.info("%s: not compiled (%s), so it is done more slowly", source.name, error)
        return None


def _compile(compiler: str, source: Path, target: Path) -> None:
    """Renamed into place when it is whole: others may be compiling it too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled, linked = Path(folder) / "a.o", Path(folder) / "a.so"
        subprocess.run([compiler, *FLAGS, source, "-o", compiled], check=True, capture_output=True, timeout=120)
        # without -fopenmp: its symbols are those that torch has loaded, so that both have one pool of threads
        subprocess.run([compiler, "-shared", compiled, "-o", linked], check=True, capture_output=True, timeout=120)
        linked.replace(target)
