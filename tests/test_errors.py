"""Messages for users."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

from recsys_emb.errors import BudgetTooSmall, UserError


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(UserError("no column 'a\x0bb\n\u2028\x1b[31m'; it has Zürich")) == (
        r"no column 'a\x0bb\n\u2028\x1b[31m'; it has Zürich"
    )


def test_an_error_comes_out_of_a_worker_process_as_it_was() -> None:
    raised = BudgetTooSmall("embedding.budget: too small", 7)
    back = ForkingPickler.loads(ForkingPickler.dumps(raised))
    assert (type(back), str(back), back.least) == (BudgetTooSmall, str(raised), 7)


def test_in_other_words_it_stays_what_it_was() -> None:
    raised = BudgetTooSmall("embedding.budget: too small", 7).reworded("--budget: too small")
    assert (type(raised), str(raised), raised.least) == (BudgetTooSmall, "--budget: too small", 7)
