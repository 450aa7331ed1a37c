"""Messages for users."""

from __future__ import annotations

from recsys_emb.errors import UserError


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(UserError("no column 'a\x0bb\n\u2028\x1b[31m'; it has Zürich")) == (
        r"no column 'a\x0bb\n\u2028\x1b[31m'; it has Zürich"
    )
