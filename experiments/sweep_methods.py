"""What the sweep compares, and the few options that each method may choose from.

Every method is offered at most three choices, and takes the one of the highest validation AUC (``sweep.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from recsys_emb.embeddings.base import GroupSpec


@dataclass(frozen=True)
class Choice:
    """A method's own options, and a factor on ``training.l2_embedding``.

    The factor is an option of every trained method: rows that ids share, or that are multiplied, meet the same L2
    differently. (At vectors of standard deviation s, L2 on two factors acts 1 / s times as strongly as on their
    product.)
    """

    options: dict[str, Any] = field(default_factory=dict)
    l2: float = 1.0


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        name: shown, and unique.
        uses: the backend, or the post-training method.
        choices: of options; the first is the default.
        kind: ``trained``, or ``after``: made of the trained full table.
        own_size: has a figure without a budget.
        budgets: has a figure at every budget.
        width: of a full table, as the model's ``embedding_dim``, by the group and the budget.
    """

    name: str
    uses: str
    choices: tuple[Choice, ...] = (Choice(),)
    kind: Literal["trained", "after"] = "trained"
    own_size: bool = False
    budgets: bool = True
    width: Callable[[GroupSpec, float | None], int] | None = None


def one_column_less(spec: GroupSpec, budget: float | None) -> int:
    return spec.vector_dim - 1


def widest_within(spec: GroupSpec, budget: float | None) -> int:
    """Columns of a vector so that all tables stay within the budget, a first-order column included."""
    return int((budget or 1) * spec.embedding_dim) - (spec.embedding_dim - spec.vector_dim)


def _trained(uses: str, *choices: Choice) -> Method:
    return Method(uses, uses, choices)


def _after(uses: str, *choices: Choice, own_size: bool = False, budgets: bool = True) -> Method:
    return Method(uses, uses, choices or (Choice(),), "after", own_size, budgets)


LESS_L2 = Choice(l2=0.1)
FULL = Method("full", "full", own_size=True, budgets=False)
METHODS = (
    FULL,
    # A control: what narrows no table much should neither gain nor lose by being narrow.
    Method("full, one column narrower", "full", own_size=True, budgets=False, width=one_column_less),
    _after("fp16", own_size=True, budgets=False),
    _after("int8", Choice(), Choice({"scales": "fp16"}), Choice({"range": "symmetric"}), own_size=True, budgets=False),
    _after("int4", Choice(), Choice({"scales": "fp32"}), Choice({"range": "symmetric"}), own_size=True, budgets=False),
    _after("drop_unseen", own_size=True),
    _after("prune", Choice(), Choice({"structure": "rows_columns"}), Choice({"weighting": "none"})),
    _after("svd", Choice(), Choice({"weighting": "none"})),
    _after("pq", Choice(), Choice({"bits": 4}), Choice({"bits": 5})),
    _after("quantized_svd", Choice(), Choice({"bits": 8}), Choice({"weighting": "none"})),
    Method("full, smaller D", "full", (Choice(), LESS_L2, Choice(l2=0.01)), width=widest_within),
    _trained("hash", Choice(), LESS_L2, Choice({"balance": 1.0})),
    _trained("multi_hash", Choice(), LESS_L2, Choice({"probes": 4})),
    _trained("qr", Choice(), LESS_L2, Choice(l2=0.01)),
    _trained("unified", Choice(), LESS_L2, Choice({"probes": 4})),
    _trained(
        "mixed_dim", Choice({"by": "popularity"}), Choice({"by": "size"}), Choice({"by": "popularity"}, LESS_L2.l2)
    ),
    _trained("low_rank", Choice(), LESS_L2, Choice(l2=0.01)),
    _trained("field_dim", Choice(), LESS_L2, Choice(l2=0.01)),
    _trained("matryoshka", Choice(), LESS_L2, Choice({"choices": [1, 2, 4, 8]})),
    _trained("optembed", Choice(), LESS_L2, Choice({"retrain_from": "best"})),
    _trained("dpq", Choice(), Choice({"codes": "residual"}), Choice({"variant": "sx"})),
    _trained("mgqe", Choice(), LESS_L2, Choice({"frequent": 0.3})),
    _trained("cce", Choice(), LESS_L2, Choice({"chunks": 8})),
)
