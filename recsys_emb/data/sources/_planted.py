"""A planted click model: Criteo-like rows whose true click probability is known.

Everything is a hash of (seed, what, row or id), so any range of rows can be made on its own and no parameter is stored,
however many ids there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys_emb.data.splitmix import stream, stream_key, uniform

CRITEO_CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Ids of the 26 categorical fields of Criteo Kaggle (display advertising challenge, 2014), 33.8 million in all."""

CLICK_RATE = 0.25
BAYES_AUC = 0.80
CHUNK_ROWS = 1 << 15
"""Rows made at a time: the temporaries of one column stay in the cache."""

_PILOT_ROWS = 1 << 16
_SHARES = {"first": 0.5, "pairs": 0.3, "dense": 0.2}
"""Parts of the logit's variance, before the ids' frequencies are taken into account."""

# What a stream of random numbers is for.
_CATEGORICAL, _DENSE, _LABEL, _EFFECT, _LATENT, _SHAPE = range(6)


@dataclass(frozen=True)
class PlantedRows:
    """n rows.

    ids:         int32 [26, n], 0 is the most frequent id of a field, -1 is missing
    dense:       float32 [Nd, n], whole numbers, NaN is missing
    logit:       float32 [n], of the true click probability
    labels:      uint8 [n]
    """

    ids: np.ndarray
    dense: np.ndarray
    logit: np.ndarray
    labels: np.ndarray


def scale_cardinalities(total: int) -> tuple[int, ...]:
    """Criteo's 26 cardinalities scaled to sum to ``total``; a small field keeps up to a thousandth of it."""
    originals = np.array(CRITEO_CARDINALITIES, dtype=np.float64)
    floors = np.minimum(originals, max(2, total // 1000))
    low, high = 0.0, total / originals.max()
    for _ in range(100):
        scale = (low + high) / 2
        low, high = (low, scale) if np.maximum(np.floor(originals * scale), floors).sum() > total else (scale, high)
    sizes = np.maximum(np.floor(originals * low), floors).astype(np.int64)
    sizes[originals.argmax()] += total - sizes.sum()
    return tuple(int(s) for s in sizes)


class PlantedModel:
    """logit = bias + scale * (first order + pairs of latent vectors + dense effects).

    First order: an effect per id, about normal, times the field's importance (rank + 1)^-1/2. Pairs: the dot product
    of 4-wide latent vectors of each field with the two before it. Dense: the standardised sign(x) log(1 + |x|) times
    the field's importance; missing counts as the mean. ``scale`` and ``bias`` are set so that the click rate is
    ``CLICK_RATE`` and the AUC of the true probabilities ``BAYES_AUC``.

    Args:
        seed: names the model and its rows.
        ids: ids of all fields together.
        zipf: exponent; id r of a field has frequency about (r + 1)^-zipf.
        dense: numeric fields.
        missing: share of missing values in every field.
        signal_fields: so many categorical fields, from the first on, act on the click; None: all.
    """

    def __init__(self, seed: int, ids: int, zipf: float, dense: int, missing: float, signal_fields: int | None) -> None:
        self.cardinalities = scale_cardinalities(ids)
        self._seed, self._zipf, self._missing = seed, zipf, missing
        signals = len(self.cardinalities) if signal_fields is None else signal_fields
        self._importance = (np.arange(signals) + 1.0) ** -0.5
        self._shapes = [_DenseShape.make(seed, j, missing) for j in range(dense)]
        self._weights = self._amplitudes()
        self.scale, self.bias = 1.0, 0.0
        # Negative row numbers: the pilot rows are none of the data's.
        self.scale, self.bias = _calibrate(self.rows(-_PILOT_ROWS, 0).logit.astype(np.float64))

    def rows(self, start: int, stop: int) -> PlantedRows:
        """Rows ``start`` to ``stop - 1``, the same whatever ranges are asked for."""
        numbers = np.arange(start, stop).astype(np.uint64)
        ids = np.empty((len(self.cardinalities), stop - start), dtype=np.int32)
        logit = np.zeros(stop - start, dtype=np.float32)
        before: list[np.ndarray] = []
        for f in range(len(ids)):
            self._draw_ids(f, numbers, ids[f])
            if f < len(self._importance):
                self._add_field(f, ids[f], before, logit)
        dense = np.empty((len(self._shapes), stop - start), dtype=np.float32)
        for j, shape in enumerate(self._shapes):
            shape.draw(stream(stream_key(self._seed, _DENSE, j), numbers), dense[j])
            logit += self._weights["dense"][j] * shape.standardised(dense[j])
        logit *= np.float32(self.scale)
        logit += np.float32(self.bias)
        chance = uniform(stream(stream_key(self._seed, _LABEL), numbers))
        return PlantedRows(ids, dense, logit, (chance < sigmoid(logit)).astype(np.uint8))

    def _draw_ids(self, f: int, numbers: np.ndarray, out: np.ndarray) -> None:
        """Inverse of the distribution function of x^-zipf on [1, n + 1), rounded down; one uniform says missing too."""
        u = uniform(stream(stream_key(self._seed, _CATEGORICAL, f), numbers))
        absent = u < self._missing
        u -= self._missing
        u /= 1.0 - self._missing
        np.maximum(u, 0.0, out=u)
        size = self.cardinalities[f]
        power = 1.0 - self._zipf
        if abs(power) < 1e-9:
            u *= np.log(size + 1.0)
        else:
            u *= (size + 1.0) ** power - 1.0
            u += 1.0
            np.log(u, out=u)
            u /= power
        np.exp(u, out=u)
        np.minimum(u, size, out=u)  # rounding may reach n + 1
        out[:] = u
        out -= 1
        out[absent] = -1

    def _add_field(self, f: int, ids: np.ndarray, before: list[np.ndarray], logit: np.ndarray) -> None:
        """Adds first order and pairs of field ``f``; ``before`` holds the latent vectors of up to two fields before."""
        logit += self._weights["first"][f] * _sum(_four(stream(stream_key(self._seed, _EFFECT, f), ids)))
        latent = _four(stream(stream_key(self._seed, _LATENT, f), ids))
        for back, other in enumerate(reversed(before), 1):
            logit += self._weights["pairs"][f, back] * np.einsum("nk,nk->n", latent, other)
        before.append(latent)
        del before[:-2]

    def _amplitudes(self) -> dict[str, np.ndarray]:
        """Weights of unit-variance terms whose variances sum to ``_SHARES``, float32."""
        first = self._importance
        pairs = np.zeros((len(first), 3))
        for back in (1, 2):
            pairs[back:, back] = np.sqrt(first[back:] * first[:-back])
        dense = (np.arange(len(self._shapes)) + 1.0) ** -0.5
        # _four is uniform of variance 1/3: a sum of four has variance 4/3, a dot product of two 4/9.
        variances = {"first": (first, 4 / 3), "pairs": (pairs, 4 / 9), "dense": (dense, 1.0)}
        return {
            part: (w * np.sqrt(_SHARES[part] / max((w**2).sum() * variance, 1e-30))).astype(np.float32)
            for part, (w, variance) in variances.items()
        }


@dataclass(frozen=True)
class _DenseShape:
    """One numeric field: floor(exp(mu + sigma z)) - shift, z about normal."""

    mu: float
    sigma: float
    shift: float
    missing: float
    mean: float = 0.0  # of sign(x) log(1 + |x|)
    deviation: float = 1.0

    @classmethod
    def make(cls, seed: int, j: int, missing: float) -> _DenseShape:
        """Mu from 0 to 5, sigma from 0.7 to 1.7; every third field reaches below zero."""
        a, b = uniform(stream(stream_key(seed, _SHAPE, j), np.arange(2)))
        plain = cls(mu=5.0 * float(a), sigma=0.7 + float(b), shift=2.0 if j % 3 == 1 else 0.0, missing=missing)
        pilot = np.empty(_PILOT_ROWS, dtype=np.float32)
        plain.draw(stream(stream_key(seed, _SHAPE, j, 1), np.arange(_PILOT_ROWS)), pilot)
        logs = _signed_log(pilot)
        mean, deviation = float(np.nanmean(logs)), float(np.nanstd(logs))
        return cls(plain.mu, plain.sigma, plain.shift, missing, mean, max(deviation, 1e-6))

    def draw(self, bits: np.ndarray, out: np.ndarray) -> None:
        """Values from 64 random bits each: three 16-bit parts sum to z, the fourth says missing."""
        parts = _four(bits)
        out[:] = _sum(parts[:, :3])  # variance 3 * 1/3
        out *= np.float32(self.sigma)
        out += np.float32(self.mu)
        np.exp(out, out=out)
        np.floor(out, out=out)
        out -= np.float32(self.shift)
        out[parts[:, 3] < np.float32(2 * self.missing - 1)] = np.nan

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """float32 [n], 0 for a missing value."""
        logs = _signed_log(values)
        logs -= np.float32(self.mean)
        logs /= np.float32(self.deviation)
        return np.nan_to_num(logs, copy=False, nan=0.0)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """float64 [n]: click probabilities."""
    return 1.0 / (1.0 + np.exp(-logit.astype(np.float64)))


def _four(bits: np.ndarray) -> np.ndarray:
    """float32 [n, 4], independent and uniform on [-1, 1), from uint64 [n]."""
    parts = bits.view(np.int16).astype(np.float32).reshape(-1, 4)
    parts *= np.float32(1 / 32768)
    return parts


def _sum(parts: np.ndarray) -> np.ndarray:
    """float32 [n]: sums of rows; einsum is several times faster than ``sum`` on short ones."""
    return np.einsum("nk->n", parts)


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.copysign(np.log1p(np.abs(values)), values)


def _calibrate(logit: np.ndarray) -> tuple[float, float]:
    """Scale and bias that give ``logit`` [n] the click rate and the AUC wanted, by bisection."""
    logit = np.sort(logit)

    def bias_of(scale: float) -> float:
        low, high = -50.0 - abs(scale * logit).max(), 50.0 + abs(scale * logit).max()
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if sigmoid(scale * logit + middle).mean() > CLICK_RATE else (middle, high)
        return low

    low, high = 0.0, 20.0 / max(float(logit.std()), 1e-9)
    for _ in range(20):
        scale = (low + high) / 2
        p = sigmoid(scale * logit + bias_of(scale))
        # Expected AUC: a row is a positive of weight p and a negative of weight 1 - p.
        below = np.cumsum(1 - p) - (1 - p)
        auc = (p * (below + (1 - p) / 2)).sum() / (p.sum() * (1 - p).sum())
        low, high = (low, scale) if auc > BAYES_AUC else (scale, high)
    return low, bias_of(low)
