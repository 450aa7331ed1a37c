"""Differentiable product quantisation: codes that are trained with the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys_emb.embeddings.backends._coded import QuantisedConfig
from recsys_emb.embeddings.backends._quantised import QuantisedBackend
from recsys_emb.embeddings.base import GroupSpec, register
from recsys_emb.errors import SettingError


class DPQConfig(QuantisedConfig):
    """Options of ``dpq``."""

    variant: Literal["vq", "sx"] = Field(
        "vq",
        description="vq: a row takes its nearest cells; sx: those whose keys have the largest products with it; no "
        "effect on what is served",
    )
    codes: Literal["product", "residual"] = Field(
        "product",
        description="product: levels share out the columns; residual (vq): each codes what those before leave, larger "
        "codebooks and smaller errors; with bits: 1 binary codes",
    )
    rotation: bool = Field(
        False, description="product: turn the columns by a learned rotation; 2 D (D + 1) bytes a table"
    )

    @property
    def layout(self) -> tuple[bool, bool]:
        return self.codes == "product", self.rotation

    @property
    def by_product(self) -> bool:
        return self.variant == "sx"


@register("dpq")
class DPQBackend(QuantisedBackend[DPQConfig]):
    """Differentiable product quantisation (Chen, Li, Sun, "Differentiable Product Quantization for End-to-End Embedding
    Compression", ICML 2020).

    Training has a query q(id) of D columns for every id. An id's vector has L parts, each a cell of that part's
    codebook of K = 2^b, and its gradient goes to the cells and, as if it were the query's own, to the query:

    - ``vq``: the nearest cell c, vector c + q - sg(q); the loss gains |sg(q) - c|^2 + beta |q - sg(c)|^2.
      The paper's cells learn from that term alone; here they have the loss's gradient, too.
    - ``sx``: softmax(q K^T) over keys K, vector V[argmax] + s - sg(s) with s = softmax(q K^T) sg(V).

    Served are codes and cells: N L b / 8 + 2 K D bytes a table (residual codes: 2 L K D). A small table that takes no
    more so keeps its rows in float16. Without a budget: a twentieth of the full tables. A step compares each different
    id with L K cells. ``residual`` codes of one bit are recurrent binary ones (Gan et al., "Binary Embedding-based
    Retrieval at Tencent", 2023); ``rotation`` is trained as in Zhang et al., "Joint Learning of Deep Retrieval Model
    and Product Quantization based Embedding Index", 2021.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "dpq", budget=0.1).serving_bytes()
        63524
    """

    summary = "product codes trained with the model, straight-through"
    Config = DPQConfig

    @classmethod
    def checked(cls, spec: GroupSpec, config: DPQConfig) -> DPQConfig:
        if config.codes == "residual" and config.variant == "sx":
            raise SettingError("options.codes", "residual goes with variant vq; sx takes product")
        if config.codes == "residual" and config.rotation:
            raise SettingError("options.rotation", "goes with product codes; residual ones code all columns")
        if config.variant == "sx" and config.collapse is not None:
            raise SettingError("options.collapse", "goes with variant vq; leave it out with sx")
        return super().checked(spec, config)
