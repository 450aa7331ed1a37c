"""A peer's side of a benchmark: requests as JSON lines on standard input, seconds as JSON lines on standard output.

The first line is the settings, from which a session is made (``benchmarks/_peer.py``). After it, ``{"do": "train", "n":
5}`` times ``session.train(5)`` and says what it returned.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def train_gflop(session: Any, batches: int) -> float:
    """10^9 multiplications and additions of the products of so many training steps."""
    with FlopCounterMode(display=False) as counter:
        session.train(batches)
    return counter.get_total_flops() / 1e9


def serve(open_session: Callable[[dict[str, Any]], Any]) -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    session = open_session(json.loads(sys.stdin.readline()))
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        work = partial(train_gflop, session) if request["do"] == "gflop" else getattr(session, request["do"])
        begin = time.perf_counter()
        result = work(request["n"])
        answer({"seconds": time.perf_counter() - begin, "result": result})
