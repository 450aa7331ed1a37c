"""The search for widths on scores whose optimum is known."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_emb.embeddings.evolution import Evolution, Widths, crossed, mutated, random_widths

DEFAULT = Evolution(generations=30, parents=10, mutations=15, crossovers=15, mutation_rate=0.2)


@pytest.mark.parametrize("target", [(1, 8, 3, 5), (8, 8, 8, 8), (1, 1, 1, 1), (2, 7, 7, 1)])
def test_it_finds_the_known_optimum(target: Widths) -> None:
    def score(widths: Widths) -> float:
        return -sum(abs(a - b) for a, b in zip(widths, target))

    assert DEFAULT.best(score, 4, 8, seed=1) == target


def test_same_seed_same_search_and_no_candidate_is_scored_twice() -> None:
    calls: list[list[Widths]] = []
    for seed in (5, 5, 6):
        calls.append([])

        def score(widths: Widths, mine: list[Widths] = calls[-1]) -> float:
            mine.append(widths)
            return float(np.sin(np.dot(widths, (1, 2, 3))))

        DEFAULT.best(score, 3, 16, seed)
    assert calls[0] == calls[1] != calls[2]
    assert len(set(calls[0])) == len(calls[0])
    assert {w for c in calls[0] for w in c} == set(range(1, 17))  # every width is tried
    assert calls[0][:5] == [(16,) * 3, (8,) * 3, (4,) * 3, (2,) * 3, (1,) * 3]


def test_the_best_is_never_lost() -> None:
    """A score that falls with every call: the first candidate stays the best."""
    scores = iter(range(10**6, 0, -1))
    assert Evolution(5, 1, 10, 0, 0.5).best(lambda w: next(scores), 3, 4, seed=1) == (4, 4, 4)


def test_mutation_changes_a_copy() -> None:
    rng = np.random.default_rng(1)
    parent = (4, 4, 4, 4)
    children = [mutated(parent, 8, 0.25, rng) for _ in range(2000)]
    assert parent == (4, 4, 4, 4)
    assert {w for c in children for w in c} == set(range(1, 9))
    drawn = np.mean([[w != 4 for w in c] for c in children])
    assert drawn == pytest.approx(7 / 8 * (0.25 + 0.75 / 4), abs=0.03)  # a quarter, and one in any case


def test_crossover_takes_each_field_from_either_parent() -> None:
    rng = np.random.default_rng(1)
    children = {crossed((1, 2, 3), (4, 5, 6), rng) for _ in range(200)}
    assert len(children) == 8
    assert all(set(c) & {1, 4} and c[1] in (2, 5) and c[2] in (3, 6) for c in children)


def test_random_widths_are_uniform_over_all_widths() -> None:
    drawn = random_widths(80_000, 8, np.random.default_rng(2))
    assert np.bincount(drawn, minlength=9)[1:] == pytest.approx(10_000, rel=0.05)
