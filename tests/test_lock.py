"""Processes that take turns at a folder."""

from __future__ import annotations

import threading
from pathlib import Path

from recsys_emb.lock import in_turn


def test_who_comes_second_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    folder, order, waits = tmp_path / "runs" / "full", [], threading.Event()

    def second() -> None:
        waits.set()
        with in_turn(folder):
            order.append("second")

    other = threading.Thread(target=second)
    with in_turn(folder):
        other.start()
        waits.wait()
        with in_turn(tmp_path / "runs" / "hash"):  # another folder is free
            other.join(timeout=0.2)  # long enough to enter, were it not held
            order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert not folder.exists()
