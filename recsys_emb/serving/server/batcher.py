"""Concurrent requests predicted together: what comes while others are predicted makes the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus

import numpy as np

from recsys_emb.data.split import Split, concatenated
from recsys_emb.errors import UserError
from recsys_emb.serving.artifact import Artifact
from recsys_emb.serving.server.bodies import Refused, Rows
from recsys_emb.serving.server.limits import Limits


@dataclass
class _Waiting:
    rows: Rows
    answer: asyncio.Future[np.ndarray] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Predicts in a thread of its own, so that the server goes on reading.

    Args:
        artifact: gives the one that is served now; asked once for each batch.
        limits: how many may wait, and rows of a request, which are about those of a batch, too.
        seen: told the rows of every batch.
    """

    def __init__(self, artifact: Callable[[], Artifact], limits: Limits, seen: Callable[[int], None]) -> None:
        self._artifact = artifact
        self._limits = limits
        self._seen = seen
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(limits.waiting)
        self._thread = ThreadPoolExecutor(1, "predict")

    async def predict(self, rows: Rows) -> np.ndarray:
        """Logits float32 [n].

        Raises:
            UserError: the rows cannot be predicted; names the field.
            Refused: too many requests wait (503).
        """
        waiting = _Waiting(rows)
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting; try again later") from None
        return await waiting.answer

    async def run(self) -> None:
        """Predicts until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            rows = batch[0].rows.count
            while rows < self._limits.rows and not self._queue.empty():
                batch.append(self._queue.get_nowait())
                rows += batch[-1].rows.count
            self._seen(rows)
            requests = [waiting.rows for waiting in batch]
            answers = await loop.run_in_executor(self._thread, predicted, self._artifact(), requests)
            for waiting, answer in zip(batch, answers):
                if waiting.answer.done():  # whoever asked has gone
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)


def predicted(artifact: Artifact, requests: list[Rows]) -> list[np.ndarray | Exception]:
    """Of each request its logits, or why it has none; one that fails leaves the others alone."""
    answers: list[np.ndarray | Exception] = []
    splits: list[Split] = []
    for request in requests:
        try:
            splits.append(artifact.encode(request.frame, request.shared))
            answers.append(np.empty(0, np.float32))
        except Exception as error:  # of any kind: it belongs to this request, and the server goes on
            answers.append(error)
    if not splits:
        return answers
    try:
        logits = iter(np.split(artifact.predict(concatenated(splits)), np.cumsum([len(s) for s in splits])[:-1]))
    except Exception as error:
        return [answer if isinstance(answer, Exception) else error for answer in answers]
    return [answer if isinstance(answer, Exception) else _finite(next(logits)) for answer in answers]


def _finite(logits: np.ndarray) -> np.ndarray | UserError:
    wrong = ~np.isfinite(logits)
    if not wrong.any():
        return logits
    return UserError(f"row {int(wrong.argmax())} (from 0): a number is too large to predict with")
