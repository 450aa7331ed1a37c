"""Sums over the steps so far, from which Adam's catch-up reads what a row missed since its last step.

With t a row's last step, n the number of steps made, lr_j the learning rate of step j, b1 and b2 the betas, and
``c_j = sqrt(1 - b2^j)`` the bias correction of the second moment's root, the sums that a row needs are

    A = sum of lr_j                                           j = t + 1 .. n
    D = sum of lr_j c_j b2^(-(j-t)/2)                         since sqrt(v) falls by b2^(1/2) a step
    T = sum of lr_j c_j b2^(-(j-t)/2) b1^(j-t) / (1 - b1^j)   since m falls by b1 a step

None of them takes a loop over the missed steps: A and D are differences of two sums over all steps, and T has ended
after some 200 steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATES, PULL, TAIL, BIAS = range(4)
"""Columns: A = RATES[n] - RATES[t], D = b2^(-(n-t)/2) PULL[n] - PULL[t], T = TAIL[t], and c_t = BIAS[t]."""


class StepHistory:
    """One row for every step, row 0 for rows that were never looked up.

    Args:
        beta1, beta2: Adam's.
        device: of the table.
    """

    def __init__(self, beta1: float, beta2: float, device: torch.device) -> None:
        self.beta1, self.beta2 = beta1, beta2
        decay = beta1 / math.sqrt(beta2)
        reach = math.ceil(math.log(1e-8) / math.log(decay))
        self._decays = decay ** torch.arange(reach, 0, -1, dtype=torch.float64, device=device)
        self.load(torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64, device=device))

    def load(self, sums: Tensor) -> None:
        """Goes on from another history's ``sums``."""
        self.steps = len(sums) - 1
        self._sums = sums.to(self._decays.device, copy=True)

    @property
    def sums(self) -> Tensor:
        """float64 [steps + 1, 4]."""
        return self._sums[: self.steps + 1]

    @torch.no_grad()
    def append(self, rate: float) -> None:
        """Notes that a step is made at this learning rate."""
        before = self._sums[self.steps]
        self.steps += 1
        if self.steps == len(self._sums):
            self._sums = torch.cat([self._sums, torch.zeros_like(self._sums)])
        bias = math.sqrt(1 - self.beta2**self.steps)
        now = self._sums[self.steps]
        now[RATES] = before[RATES] + rate
        now[PULL] = before[PULL] * math.sqrt(self.beta2) + rate * bias
        now[BIAS] = bias
        missed = self._sums[max(0, self.steps - len(self._decays)) : self.steps, TAIL]
        missed.add_(self._decays[-len(missed) :], alpha=rate * bias / (1 - self.beta1**self.steps))
