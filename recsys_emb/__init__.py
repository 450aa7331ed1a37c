"""recsys_emb: small, fast and honest embedding tables for click-through-rate models.

The public API is the names below; each is imported when it is first used, so that ``recsys-emb --help`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"

if find_spec("torch") is None or find_spec("torchrec") is None:
    raise ImportError(
        "recsys_emb needs torch and torchrec: pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 "
        "&& pip install --no-deps torchrec==1.8.0 (CUDA: pip install torch==2.13.0 torchrec==1.8.0)"
    )

_EXPORTS = {
    "EmbeddingBackend": "recsys_emb.embeddings.base",
    "UserError": "recsys_emb.errors",
    "list_backends": "recsys_emb.embeddings",
    "list_models": "recsys_emb.models",
    "load_artifact": "recsys_emb.serving",
    "load_config": "recsys_emb.config",
    "load_run": "recsys_emb.training.run_dir",
    "make_embedding_bag_collection": "recsys_emb.embeddings.collections",
    "make_embedding_collection": "recsys_emb.embeddings.collections",
    "open_dataset": "recsys_emb.data.store",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'recsys_emb' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
