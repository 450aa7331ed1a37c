"""Learned vectors of dense features.

B rows, Nd dense features, H buckets, D columns of a vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AutoDis(nn.Module):
    """A dense value as a mixture of its feature's H vectors (Guo et al., KDD 2021, "AutoDis"): [B, Nd] -> [B, Nd, D].

    h = leaky_relu(w x + b), p = softmax(W h + h), the vector is the sum over buckets of p_h v_h. The paper has no b,
    so that its scores are lines through zero; here b starts at zero and is learned. The softmax has no temperature of
    its own, as w learns it.

    Args:
        num_dense: Nd.
        buckets: H.
        width: D.
    """

    def __init__(self, num_dense: int, buckets: int, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.randn(num_dense, buckets) * (2 / (1 + buckets)) ** 0.5)
        self.shift = nn.Parameter(torch.zeros(num_dense, buckets))
        self.mix = nn.Parameter(torch.randn(num_dense, buckets, buckets) * buckets**-0.5)
        self.vectors = nn.Parameter(0.01 * torch.randn(num_dense, buckets, width))

    def forward(self, dense: Tensor) -> Tensor:
        """In float32 under autocast too."""
        with torch.autocast(dense.device.type, enabled=False):
            h = F.leaky_relu(torch.addcmul(self.shift, dense[:, :, None], self.slope)).transpose(0, 1)  # [Nd, B, H]
            shares = torch.softmax(h @ self.mix + h, dim=2)
            return (shares @ self.vectors).transpose(0, 1)
