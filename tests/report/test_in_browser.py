"""Every kind of page in headless Chromium: nothing fetched, nothing logged, nothing cut off, tables that sort."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_emb.report import compare, run_page, search_page
from recsys_emb.training.stored_predictions import StoredPredictions

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGES = ("compare", "run", "search")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def written(make_run: Callable[..., Path], make_search: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """``written(kind)`` writes a page with long names, spreads and many columns."""

    def write(kind: str) -> Path:
        if kind == "run":
            labels = np.tile([0, 0, 1], 100).astype(np.uint8)
            predictions = StoredPredictions(np.linspace(-3, 1, 300, dtype=np.float32), labels, known_user=labels > 0)
            shares = {f"field_with_a_long_name_{i}": i / 10 for i in range(5)}
            figures = {"bayes_auc": 0.9, "unknown_share": shares, "best_step": 800, "first_order": True}
            return run_page(make_run("a-run-with-a-rather-long-name-" * 3, predictions=predictions, **figures))
        if kind == "search":
            return search_page(make_search("a-search"))
        aucs = {"full": (0.8912, 0.8947, 0.8921), "hash": (0.8876, 0.8881, 0.8869), "mixed_dim": (0.8901, 0.8899, 0.89)}
        for backend, of_seeds in aucs.items():
            for seed, auc in enumerate(of_seeds):
                everything = {
                    "vocabulary_bytes": 89_308,
                    "served_bytes": 4_574_123,
                    "bayes_auc": 0.9,
                    "auc_stderr": 0.01,
                }
                everything |= {"serving_bytes": len(backend) * 10**8, "peak_rss_bytes": 12_345_678_901}
                run = make_run(f"{backend}-{seed}", backend=backend, seed=seed, auc=auc, budget="5GB", **everything)
        compare(sorted(p.parent for p in tmp_path.glob("*/DONE")), tmp_path / "compare.html", against=run)
        return tmp_path / "compare.html"

    return write


def opened(browser: Any, path: Path, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and what it logged, threw or asked for besides itself."""
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    events: list[str] = []
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("request", lambda request: events.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    events.remove(f"request: {path.as_uri()}")
    return page, events


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(420, "light"), (1200, "dark")])
def test_a_page_is_quiet_and_fits_its_window(browser, written, kind, width, scheme):
    page, events = opened(browser, written(kind), width, scheme)
    assert events == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width >= 1200:  # on a telephone wide tables scroll in their boxes
        assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    page.context.close()


@pytest.mark.parametrize("kind", PAGES)
def test_what_is_wider_than_the_window_says_that_it_scrolls(browser, written, kind):
    page, _ = opened(browser, written(kind), 420)
    wide = "e => e.scrollWidth > e.clientWidth"
    told = "e => getComputedStyle(e, '::before').content.includes('Scroll sideways')"
    boxes = page.query_selector_all(".scroll")
    assert any(box.evaluate(wide) for box in boxes)
    assert [box.evaluate(told) for box in boxes] == [box.evaluate(wide) for box in boxes]
    page.set_viewport_size({"width": 1300, "height": 800})
    page.wait_for_function("!document.querySelector('.scrolls')")
    page.context.close()


@pytest.mark.parametrize("kind", PAGES)
def test_both_halves_of_a_wide_window_are_used(browser, written, kind):
    page, _ = opened(browser, written(kind), 1300)
    ends = """[...document.querySelector('main').children].map(part => Math.max(
        ...[...part.querySelectorAll('table, .cards, figure, pre')].map(e => e.getBoundingClientRect().right)))"""
    assert min(page.evaluate(ends)) > 1200
    page.context.close()


@pytest.mark.parametrize("kind", PAGES)
def test_text_stands_out_in_light_and_dark(browser, written, kind):
    path = written(kind)
    for scheme in ("light", "dark"):
        page, _ = opened(browser, path, 1200, scheme)
        colours = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        ink, paper = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
        assert abs(ink - paper) > 400
        assert (ink < paper) == (scheme == "light")
        drawn = "[...document.querySelectorAll('svg [id^=text_] > g')].map(g => getComputedStyle(g).fill)"
        assert set(page.evaluate(drawn)) == {colours[0]}
        page.context.close()


@pytest.mark.parametrize("kind", PAGES)
def test_a_click_on_any_title_sorts_its_table(browser, written, kind):
    page, events = opened(browser, written(kind), 1200)
    for table in page.query_selector_all("table.sortable"):
        for column, button in enumerate(table.query_selector_all("th button")):
            number = "number" in (button.evaluate("b => b.parentElement.className") or "")
            first, second = [], []
            for order in (first, second):
                button.click()
                order += table.evaluate(
                    "(t, i) => [...t.tBodies[0].rows].map(r => r.cells[i].dataset.value ?? r.cells[i].textContent)",
                    column,
                )
            if number:  # largest first; a dash has no value and stays last
                figures = [float(x) for x in first if x != "–"]
                assert figures == sorted(figures, reverse=True)
                assert [float(x) for x in second if x != "–"] == sorted(figures)
                assert "–" not in (*first[: len(figures)], *second[: len(figures)])
            else:
                assert first == sorted(first, key=str.lower)
                assert second == sorted(first, key=str.lower, reverse=True)
            assert button.evaluate("b => b.parentElement.getAttribute('aria-sort')") == (
                "ascending" if number else "descending"
            )
    assert events == []
    page.context.close()
