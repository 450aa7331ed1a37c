"""What a process sets before it computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from recsys_emb.training import runtime

CPU, CARD = torch.device("cpu"), torch.device("cuda")
MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


@pytest.fixture
def settings() -> Iterator[None]:
    """Puts torch's settings back."""
    before = torch.get_float32_matmul_precision(), MATMUL.fp32_precision, CUDNN.allow_tf32, torch.get_rng_state()
    yield
    torch.set_float32_matmul_precision(before[0])
    MATMUL.fp32_precision, CUDNN.allow_tf32 = before[1:3]
    torch.set_rng_state(before[3])


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize(("precision", "card"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "tf32")])
def test_a_cards_fp32_products_are_exact_whatever_the_hosts_processor(
    precision: str, card: str, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    runtime.configure(1, precision)
    assert MATMUL.fp32_precision == card
    assert CUDNN.allow_tf32 == (precision != "fp32")
    assert (CUDNN.conv.fp32_precision == "tf32") == (CUDNN.rnn.fp32_precision == "tf32") == (precision != "fp32")


@pytest.mark.usefixtures("settings")
def test_fp32_products_on_this_cpu_have_fp32s_error() -> None:
    runtime.configure(1, "fp32")
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    exact = a.double() @ b.double()
    assert ((a @ b) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_precision_by_name() -> None:
    assert runtime.pick_precision("tf32", CPU) == "fp32"
    assert runtime.pick_precision("tf32", CARD) == "tf32"
    assert [runtime.pick_precision(p, d) for p in ("fp32", "bf16") for d in (CPU, CARD)] == ["fp32"] * 2 + ["bf16"] * 2
