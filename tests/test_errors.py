"""Messages for users."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import pytest

from recsys_emb.errors import BudgetTooSmall, SettingError, UserError, settings_written_as


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(UserError("no column 'a\x0bb\n\u2028\x1b[31m'; it has Zürich")) == (
        r"no column 'a\x0bb\n\u2028\x1b[31m'; it has Zürich"
    )


def test_an_error_comes_out_of_a_worker_process_as_it_was() -> None:
    for raised in (BudgetTooSmall("full", 7, 12), BudgetTooSmall("full", 7, 12).written_as("--budget")):
        back = ForkingPickler.loads(ForkingPickler.dumps(raised))
        assert (type(back), str(back), back.min_bytes) == (BudgetTooSmall, str(raised), 12)


def test_a_setting_is_called_what_the_innermost_who_knows_calls_it() -> None:
    said = "full cannot fit in 7 bytes; the least it can reach is 12 bytes"
    with (
        pytest.raises(BudgetTooSmall, match=f"^--budget: {said}$") as raised,
        settings_written_as(lambda setting: f"embedding.{setting}"),
        settings_written_as(lambda setting: f"--{setting}"),
    ):
        raise BudgetTooSmall("full", 7, 12)
    assert raised.value.min_bytes == 12
    with (
        pytest.raises(SettingError, match=r"^embedding\.options\.rows: 0$"),
        settings_written_as("embedding.{}".format),
    ):
        raise SettingError("options.rows", "0")
