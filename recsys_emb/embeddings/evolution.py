"""Evolutionary search of one width per field, by evaluation alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Widths = tuple[int, ...]
"""One width per field. A tuple, so that no operator can change a parent."""


@dataclass(frozen=True)
class Evolution:
    """How long to search: at most (generations + 1) * (mutations + crossovers) evaluations.

    Every generation the ``parents`` best candidates of all so far (so the best is never lost) give ``mutations``
    children, in which each field gets a new width with probability ``mutation_rate``, and ``crossovers`` children,
    whose fields each come from either of two parents (Guo et al., "Single Path One-Shot Neural Architecture Search with
    Uniform Sampling", 2020, algorithm 1, with elitism). No candidate is scored twice.
    """

    generations: int
    parents: int
    mutations: int
    crossovers: int
    mutation_rate: float

    def best(self, score: Callable[[Widths], float], fields: int, most: int, seed: int) -> Widths:
        """The candidate of the highest score, of widths 1..``most``; the same for the same ``seed``.

        The first candidates are all fields at ``most``, ``most / 2``, ``most / 4`` ... columns, and random ones.
        """
        rng = np.random.default_rng(seed)
        known: dict[Widths, float] = {}
        uniform = [(most >> k,) * fields for k in range(most.bit_length())]
        first = max(self.parents, self.mutations + self.crossovers) - len(uniform)
        candidates = uniform + [random_widths(fields, most, rng) for _ in range(first)]
        for generation in range(self.generations + 1):
            for candidate in candidates:
                if candidate not in known:
                    known[candidate] = score(candidate)
            best = sorted(known, key=known.__getitem__, reverse=True)[: self.parents]
            if generation == self.generations:
                break
            pick = [best[i] for i in rng.integers(len(best), size=self.mutations + 2 * self.crossovers)]
            candidates = [mutated(p, most, self.mutation_rate, rng) for p in pick[: self.mutations]]
            pairs = pick[self.mutations :]
            candidates += [crossed(a, b, rng) for a, b in zip(pairs[::2], pairs[1::2])]
        return best[0]


def random_widths(fields: int, most: int, rng: np.random.Generator) -> Widths:
    return tuple(rng.integers(1, most + 1, size=fields).tolist())


def mutated(parent: Widths, most: int, rate: float, rng: np.random.Generator) -> Widths:
    """Each field drawn anew with probability ``rate``, one of them in any case."""
    chosen = rng.random(len(parent)) < rate
    chosen[rng.integers(len(parent))] = True
    return tuple(np.where(chosen, rng.integers(1, most + 1, size=len(parent)), parent).tolist())


def crossed(a: Widths, b: Widths, rng: np.random.Generator) -> Widths:
    """Each field's width from one parent or the other."""
    return tuple(np.where(rng.random(len(a)) < 0.5, a, b).tolist())
