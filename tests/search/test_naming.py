"""Trials in a few words."""

from __future__ import annotations

import pytest

from recsys_emb.search.naming import drawn, method_of

WIDTH = "embedding.options.widths."


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, ""),
        ({"model.name": "fm", "embedding.backend": "qr"}, ""),  # that is its method
        ({"training.learning_rate": 0.00678537, "model.hidden": "[64, 32]"}, "learning_rate=0.00679, hidden=[64, 32]"),
        ({"model.name": "fm", "model.hidden[deepfm]": "[8]"}, "hidden=[8]"),
        ({"model.embedding_dim": 4, f"{WIDTH}a": 0, f"{WIDTH}b+c": 8}, "embedding_dim=4, widths 0 8"),
        ({f"{WIDTH}t{i}": i for i in range(2, 12)}, "10 widths of 2 to 11"),
        ({"a.rate": 1, "b.rate": 2}, "a.rate=1, b.rate=2"),
    ],
)
def test_what_was_drawn(params: dict[str, object], words: str) -> None:
    assert drawn(params) == words


def test_the_method_is_model_and_backend() -> None:
    assert method_of({"model": {"name": "fm"}, "embedding": {"backend": "qr"}}) == "fm / qr"
