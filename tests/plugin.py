# The backend of another package, as the README shows it (tests/test_readme.py compares).
# my_package/modulo.py
from pydantic import Field

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend
from recsys_emb.embeddings.tables import EmbeddingTable


class ModuloConfig(BackendConfig):
    rows: int | None = Field(None, ge=1, description="rows that all ids share; absent: what the budget holds, or 1000")


class Modulo(EmbeddingBackend[ModuloConfig]):
    summary = "the remainder of an id picks its row"
    Config = ModuloConfig

    def __init__(self, spec, config, device=None):
        super().__init__(spec, config, device)
        self.table = EmbeddingTable(config.rows, spec.embedding_dim, spec.tables[0].init_std, device)

    @classmethod
    def min_bytes(cls, spec, config, stats=None):
        return 4 * spec.embedding_dim * (config.rows or 1)

    @classmethod
    def plan(cls, spec, config, budget=None, stats=None):  # bytes, no less than min_bytes
        rows = config.rows or (1000 if budget is None else budget // (4 * spec.embedding_dim))
        return config.model_copy(update={"rows": rows})

    def lookup(self, ids, counts):  # ids [N]; counts: how many belong to each table -> [N, D]
        return self.table(ids % self.config.rows)
