"""Builds the HTML pages: one file each, nothing fetched from elsewhere, everything user-supplied escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from urllib.parse import quote


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a muted second text, the number to sort by (None: sort by text), links below.

    A link is a text and the address of a file beside the page, or None for the text alone.
    """

    text: str
    note: str = ""
    value: float | None = None
    links: Sequence[tuple[str, str | None]] = ()


@dataclass(frozen=True)
class Header:
    """One column's title, and what it means (shown on hover); ``number`` aligns right and sorts by value."""

    title: str
    meaning: str = ""
    number: bool = True


def page(title: str, subtitle: str, *sections: str) -> str:
    """A whole document. ``title`` and ``subtitle`` are text, ``sections`` HTML."""
    template = files("recsys_emb.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(title), subtitle=escape(subtitle), body="\n".join(s for s in sections if s)
    )


def section(title: str, *content: str, note: str = "") -> str:
    """A heading, an explaining sentence (text) and its content (HTML)."""
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{''.join(content)}</section>"


def table(headers: Sequence[Header], rows: Sequence[Sequence[Cell]], total: Sequence[Cell] | None = None) -> str:
    """A table that sorts by a click on a column's title; ``total`` stays at the bottom."""
    head = "".join(
        f'<th scope="col"{_class(h)} aria-sort="none" title="{escape(h.meaning)}">'
        f'<button type="button">{escape(h.title)}</button></th>'
        for h in headers
    )
    body = "".join(f"<tr>{_cells(headers, row)}</tr>" for row in rows)
    foot = f"<tfoot><tr>{_cells(headers, total)}</tr></tfoot>" if total else ""
    return (
        '<div class="scroll" tabindex="0"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table></div>"
    )


def cards(items: Sequence[tuple[str, str, str]]) -> str:
    """Headline figures: (name, figure, explanation) each."""
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{_breakable(escape(figure))}<small>{escape(note)}</small></dd></div>"
        for name, figure, note in items
    )
    return f'<dl class="cards">{inner}</dl>'


def _breakable(text: str) -> str:
    """The name of a method made of two breaks between them, not within a word."""
    return text.replace("+", "+<wbr>")


def figure(svg: str, caption: str) -> str:
    """An inline SVG and its caption (text)."""
    return f'<figure><div class="scroll" tabindex="0">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


def figures(*content: str) -> str:
    """Figures and tables (HTML) side by side where there is room."""
    return f'<div class="figures">{"".join(content)}</div>'


def warning(text: str) -> str:
    """A sentence that must not be overlooked."""
    return f'<p class="warning">{escape(text)}</p>'


def preformatted(text: str) -> str:
    """Text as it is, in a box that scrolls."""
    return f'<pre tabindex="0">{escape(text)}</pre>'


def _class(header: Header) -> str:
    return ' class="number"' if header.number else ""


def _cells(headers: Sequence[Header], row: Sequence[Cell]) -> str:
    html = ""
    for header, cell in zip(headers, row, strict=True):
        value = "" if cell.value is None else f' data-value="{cell.value!r}"'
        note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
        links = ", ".join(_link(text, address) for text, address in cell.links)
        links = f"<small>{links}</small>" if links and cell.text else links
        html += f"<td{_class(header)}{value}>{escape(cell.text)}{note}{links}</td>"
    return html


def _link(text: str, address: str | None) -> str:
    return escape(text) if address is None else f'<a href="{escape(quote(address))}">{escape(text)}</a>'
