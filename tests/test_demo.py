"""The demo as a whole, with two of its backends."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from recsys_emb import demo
from recsys_emb.errors import UserError
from recsys_emb.training.progress import Silent


def test_a_method_that_cannot_be_that_small_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "list_backends", lambda: ["field_dim", "full"])
    said: list[str] = []
    rows = demo.run_demo(tmp_path / "demo", 3000, lambda title: nullcontext(Silent()), said.append)
    assert [row["backend"] for row in rows] == ["full"]
    assert any(line.startswith("field_dim") and "the least it can reach is" in line for line in said)
    assert (tmp_path / "demo/report.html").is_file()
    with pytest.raises(UserError, match="demo of another size"):
        demo.run_demo(tmp_path / "demo", 4000, lambda title: nullcontext(Silent()), said.append)
