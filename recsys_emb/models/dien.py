"""Deep Interest Evolution Network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import BatchLosses, Inputs, register
from recsys_emb.models.histories import HistoryModel, padded
from recsys_emb.models.layers import MLP, Activation, DeepConfig, Linear, Logit, Units


class DIENConfig(DeepConfig):
    """Options of DIEN."""

    hidden: Units = Field((200, 80), min_length=1, description="units of each layer of the deep network")
    activation: Activation = Field("dice", description="of the deep network")
    aux_weight: float = Field(1.0, ge=0, description="weight of the loss by which interests predict the next item")


class AttentionalGRU(nn.Module):
    """A GRU whose update gate is scaled by attention (AUGRU), or a plain one (Zhou et al. 2019, "interest evolving").

    u = sigmoid(W_u x + U_u h + b_u), r likewise, h~ = tanh(W x + r * (U h) + b), h = (1 - a u) * h + a u * h~.
    Where there is no history the state stays as it is, zero before it begins.
    """

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.inputs = Linear(width, 3 * units)
        self.state = Linear(units, 3 * units, bias=False)
        self.units = units

    def forward(self, x: Tensor, there: Tensor, attention: Tensor | None = None) -> Tensor:
        """x [B, T, width], there bool [B, T] and attention [B, T] (absent: 1) -> states [B, T, units]."""
        h, states = x.new_zeros(x.shape[0], self.units), []
        for t, given in enumerate(self.inputs(x).unbind(1)):
            (u, r, new), (u_h, r_h, new_h) = given.chunk(3, dim=1), self.state(h).chunk(3, dim=1)
            u, r = torch.sigmoid(u + u_h), torch.sigmoid(r + r_h)
            new = torch.tanh(new + r * new_h)
            if attention is not None:
                u = attention[:, t, None] * u
            h = torch.where(there[:, t, None], torch.lerp(h, new.to(h.dtype), u.to(h.dtype)), h)
            states.append(h)
        return torch.stack(states, dim=1)


class InterestEvolution(nn.Module):
    """A history's interests, and how they evolve towards the target (Zhou et al. 2019).

    A GRU finds an interest behind each item ("interest extractor"); softmax over a history of h_t W e_a weighs how
    much each moves the state of a second GRU, whose last state is the interest in the target a ("interest evolving").
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.extractor, self.evolver = AttentionalGRU(width, width), AttentionalGRU(width, width)
        self.relevance = Linear(width, width, bias=False)

    def forward(self, target: Tensor, history: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """target [B, K], history [B, T, K] at the end of its row -> interest [B, K] and states behind it [B, T, K]."""
        interests = self.extractor(history, there)
        scores = (interests * self.relevance(target)[:, None]).sum(2).float()
        attention = scores.masked_fill(~there, torch.finfo(torch.float32).min).softmax(1)
        return self.evolver(interests, there, attention)[:, -1], interests


def next_item_loss(interests: Tensor, history: Tensor, there: Tensor) -> Tensor:
    """How well each interest tells the item that came next from another of the batch, float32 without dimensions.

    -log sigmoid(h_t . e_{t+1}) - log(1 - sigmoid(h_t . e')), e' drawn from all items of the batch's histories, and left
    out where it is the true one. The mean over all pairs of neighbours in a history; padding is none.

    Args:
        interests, history: [B, T, K].
        there: bool [B, T].
    """
    pairs = there[:, :-1] & there[:, 1:]
    state, item = interests[:, :-1][pairs].float(), history[:, 1:][pairs].float()  # [pairs, K]
    if not len(state):
        return interests.sum() * 0.0
    items = history[there].float()
    other = items[torch.randint(len(items), (len(state),), device=items.device)]
    differs = (other != item).any(1)
    yes, no = (state * item).sum(1), (state * other).sum(1)
    return (F.softplus(-yes) + F.softplus(no) * differs).mean()


@register("dien")
class DIEN(HistoryModel):
    """Deep Interest Evolution Network (Zhou et al., AAAI 2019): interests found and followed by recurrent networks.

    In training the interests also learn to predict the next item. Other items come from the batch, since a dataset has
    no histories of what was not chosen.
    """

    summary = "recurrent interests that evolve towards the target item"

    Config = DIENConfig

    def __init__(self, config: DIENConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.evolution = nn.ModuleList(InterestEvolution(width) for width in self.widths)
        mlp = MLP(
            self.flat_width + sum(self.widths), config.hidden, config.dropout, config.batch_norm, config.activation
        )
        self.deep = nn.Sequential(mlp, Logit(mlp.out_features))
        self.aux_weight = config.aux_weight

    def interests(self, x: Inputs) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each group of histories: interest [B, K], the states behind it and the history [B, T, K], where it is."""
        out = []
        for evolution, group, most in zip(self.evolution, self.groups(x), self.lengths):
            history, there = padded(group.values, group.lengths, most)
            out.append((*evolution(group.target, history, there), history, there))
        return out

    def logits(self, x: Inputs) -> Tensor:
        return self.deep(x.flat(*(found[0] for found in self.interests(x))))

    def logits_and_loss(self, x: Inputs, losses: BatchLosses) -> tuple[Tensor, Tensor | None]:
        found = self.interests(x)
        logits = self.deep(x.flat(*(interest for interest, *_ in found)))
        if not self.aux_weight:
            return logits, None
        aux = torch.stack([next_item_loss(*states) for _, *states in found]).sum()
        return logits, self.aux_weight * losses.rows * aux
