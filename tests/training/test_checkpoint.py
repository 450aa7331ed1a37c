"""Checkpoints: which are kept, which is gone on from when some are damaged, and how their weights are read."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recsys_emb.errors import UserError
from recsys_emb.training import checkpoint
from recsys_emb.training.checkpoint import MODEL, Checkpoints


def models() -> tuple[nn.Module, nn.Module]:
    return tuple(nn.Sequential(nn.Embedding(1001, 3), nn.Linear(3, 2)) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("piece", [12, 100, 4096, 1 << 26], ids="{} bytes".format)
def test_the_weights_read_in_pieces_are_those_written(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", piece)
    written, read = models()
    save_file(written.state_dict(), tmp_path / "model.safetensors")
    checkpoint.load_model(read, tmp_path)
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, written.state_dict()[name]), name


def test_another_models_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 16)
    save_file({"0.weight": torch.zeros(1000, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"does not fit the run's config .*0\.weight"):
        checkpoint.load_model(models()[0], tmp_path)


PROGRAM = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from recsys_emb.training import checkpoint
from recsys_emb.training.runtime import peak_rss_bytes, reset_peak_rss

checkpoint.PIECE_BYTES = 1 << 20
folder = Path(sys.argv[1])
table = torch.nn.Embedding(1 << 20, 16)  # 64 MB
save_file(table.state_dict(), folder / "model.safetensors")
reset_peak_rss()
before = peak_rss_bytes()
checkpoint.load_model(table, folder)
print((peak_rss_bytes() - before) / table.weight.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_loading_holds_no_second_table(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.3


# -- kept, damaged, found ---------------------------------------------------------------------------------------------


def save(checkpoints: Checkpoints, step: int, best: int | None) -> None:
    tensors = {"w": torch.full((4,), float(step))}
    checkpoints.save(step, tensors, {"m": torch.zeros(4)}, {"step": step}, best)


def kept(checkpoints: Checkpoints) -> list[int]:
    return [int(p.name.removeprefix("step-")) for p in sorted(checkpoints.path.glob("step-*"))]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "train")
    for step, best in ((5, 5), (10, 5), (15, 15), (20, 15), (25, 15)):
        save(made, step, best)
    return made


def test_the_last_two_are_kept_each_with_its_best(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path)
    seen = []
    for step, best in ((3, None), (5, 5), (10, 5), (15, 5), (20, 20), (25, 20), (30, 20)):
        save(made, step, best)
        seen.append(kept(made))
    assert seen == [[3], [3, 5], [5, 10], [5, 10, 15], [5, 15, 20], [20, 25], [20, 25, 30]]
    assert made.last() == made.folder(30)
    assert made.best() == made.folder(20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000025", "step-00000030"]


def test_a_checkpoint_of_the_same_step_is_replaced(checkpoints: Checkpoints) -> None:
    checkpoints.save(25, {"w": torch.ones(2)}, {}, {}, 25)
    assert kept(checkpoints) == [15, 20, 25]
    assert checkpoints.best() == checkpoints.folder(25)
    assert load_file(checkpoints.folder(25) / MODEL)["w"].tolist() == [1, 1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def forge(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        tree = json.loads((folder / "manifest.json").read_text())
        change(tree)
        (folder / "manifest.json").write_text(json.dumps(tree))

    return damage


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: flip(f / "model.safetensors"), "model.safetensors: damaged, its size or checksum is not that of"),
    (lambda f: flip(f / "optimizer.safetensors"), "optimizer.safetensors: damaged"),
    (lambda f: flip(f / "state.json"), "state.json: damaged"),
    (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors: damaged"),
    (lambda f: (f / "state.json").unlink(), "state.json: missing"),
    (lambda f: (f / "manifest.json").unlink(), "manifest.json: cannot be read"),
    (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: not valid JSON"),
    (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json: not valid JSON"),
    (forge(lambda t: t.update(format_version="1")), "manifest.json: format_version"),
    (forge(lambda t: t.update(best=-1)), "manifest.json: best"),
    (forge(lambda t: t["files"].update({"../../x": t["files"]["state.json"]})), "manifest.json: files"),
    (forge(lambda t: t["files"]["state.json"].update(bytes=-1)), "manifest.json: files"),
    (forge(lambda t: t["files"].pop("state.json")), "manifest.json: lists no state.json"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_checkpoint_is_named_and_passed_over(
    checkpoints: Checkpoints, damage: Callable[[Path], Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(checkpoints.folder(25))
    with caplog.at_level(logging.WARNING):
        assert checkpoints.last() == checkpoints.folder(20)
    (warning,) = caplog.messages
    assert str(checkpoints.folder(25)) in warning
    assert message in warning
    assert "\n" not in warning
    save(checkpoints, 22, 15)  # the run goes on from 20: what was ahead goes
    assert kept(checkpoints) == [15, 20, 22]


def test_checkpoints_of_another_version_are_not_passed_over(checkpoints: Checkpoints) -> None:
    forge(lambda t: t.update(format_version=1))(checkpoints.folder(25))
    for read in (checkpoints.last, checkpoints.best):
        with pytest.raises(UserError, match="25: a checkpoint of format 1, this version reads 3; go on with"):
            read()
    assert kept(checkpoints) == [15, 20, 25]


def test_without_its_best_a_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path)
    for step, best in ((5, 5), (10, 5), (15, 15)):
        save(made, step, best)
    flip(made.folder(15) / MODEL)
    assert made.last() == made.folder(10)
    flip(made.folder(5) / MODEL)
    assert made.last() is None
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        made.best()


def test_a_write_that_fails_leaves_what_was_there(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save(checkpoints, 30, 15)
    assert sorted(p.name for p in checkpoints.path.iterdir()) == [f"step-000000{n}" for n in (15, 20, 25)]
