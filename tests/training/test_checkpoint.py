"""Checkpoints are read in pieces: the same weights, without a second table in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from recsys_emb.errors import UserError
from recsys_emb.training import checkpoint


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
