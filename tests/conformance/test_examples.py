"""The example in every backend's docstring gives what it says."""

from __future__ import annotations

import doctest

import pytest
from torchrec import EmbeddingBagConfig

from recsys_emb.embeddings import make_embedding_bag_collection
from recsys_emb.embeddings.base import backend_registry

NAMES = {"EmbeddingBagConfig": EmbeddingBagConfig, "make_embedding_bag_collection": make_embedding_bag_collection}


@pytest.mark.parametrize("name", backend_registry.names())
def test_the_example_of_a_backend_runs(name: str) -> None:
    docstring = backend_registry.get(name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(docstring, dict(NAMES), name, None, None)
    assert any(f'"{name}"' in line.source for line in example.examples)
    assert not any(line.options for line in example.examples)  # nothing is skipped
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
