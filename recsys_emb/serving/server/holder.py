"""The artifact that is served now, and its replacement while requests go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from recsys_emb.data.frame import roles
from recsys_emb.errors import UserError
from recsys_emb.serving.artifact import Artifact, load_artifact
from recsys_emb.serving.server.metrics import Metrics
from recsys_emb.training import runtime


class Holder:
    """Loads ``path``; requests that came before a reload are answered by the artifact that was there.

    Args:
        path: the artifact's folder, or a link to it.
        device: ``auto``, ``cpu`` or ``cuda``.
        metrics: told of every load.

    Raises:
        UserError: not an artifact, or damaged.
    """

    def __init__(self, path: Path, device: str, metrics: Metrics) -> None:
        self._path, self._device, self._metrics = path, device, metrics
        self._one_at_a_time = asyncio.Lock()
        self._use(self._load())

    def artifact(self) -> Artifact:
        """The one that is served now."""
        return self._current

    async def reload(self) -> Artifact:
        """Loads what is at ``path`` now. Raises UserError when that is none; the old one stays."""
        async with self._one_at_a_time:
            try:
                loaded = await asyncio.to_thread(self._load)
            except UserError:
                self._metrics.reloads.labels("refused").inc()
                raise
            self._use(loaded)
            self._metrics.reloads.labels("done").inc()
            return loaded

    def _load(self) -> Artifact:
        artifact = load_artifact(self._path.resolve(), self._device)
        # A row of missing values reads the vocabularies and imports what the first request need not wait for.
        artifact.logits({name: [None] for name, _ in roles(artifact.schema)})
        return artifact

    def _use(self, artifact: Artifact) -> None:
        runtime.configure(artifact.config.seed, artifact.manifest.precision)
        self._current = artifact
        self._metrics.loaded.set_to_current_time()
        self._metrics.serving_bytes.set(artifact.serving_bytes)
