"""FuxiCTR's preparation of a Criteo file: its feature processor, as its Criteo configuration sets it up."""

from __future__ import annotations

import tempfile
from typing import Any

from fuxictr.preprocess import FeatureProcessor, build_dataset
from fuxictr.preprocess.build_dataset import init_ray

from benchmarks.peers._serve import serve


class Session:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.raw = settings["raw"]
        init_ray()  # its start is not timed

    def prepare(self, rows: int) -> None:
        """Vocabularies, scaling and encoded columns in Parquet, of all rows as the training split."""
        dense = {
            "name": [f"I{i}" for i in range(1, 14)],
            "dtype": "float",
            "type": "numeric",
            "normalizer": "MinMaxScaler",
        }
        categorical = {"name": [f"C{i}" for i in range(1, 27)], "dtype": "str", "type": "categorical"}
        columns = [{**c, "active": True} for c in (dense, categorical)]
        with tempfile.TemporaryDirectory() as folder:
            processor = FeatureProcessor(columns, {"name": "label", "dtype": "float"}, "criteo", folder)
            build_dataset(processor, train_data=self.raw)


if __name__ == "__main__":
    serve(Session)
