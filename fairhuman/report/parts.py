"""Pages and what they are made of: sections, tiles, tables, notes. One file that needs no other.

Text is escaped; `Html` is markup and is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

from fairhuman.common.html import document

_COLOURED = ("global", "face", "hand")
_OTHERS = 4
LABELS = {"global": "whole image", "face": "faces", "hand": "hands"}


class Html(str):
    """Markup, which is not escaped again."""


def page(title: str, sections: Iterable[Html], data: Any = None, lead: str = "") -> Html:
    """Return a whole page.

    Args:
        title: its heading.
        sections: from `section`.
        data: what its charts were drawn from, for their tooltips: see `chart.Data`.
        lead: a sentence under the heading.
    """
    files = resources.files("fairhuman.report")
    style = (files / "style.css").read_text(encoding="utf-8")
    script = (files / "page.js").read_text(encoding="utf-8")
    body = "\n".join(sections)
    return Html(
        document(
            title,
            style,
            f"<header><h1>{escape(title)}</h1>{_paragraph(lead)}</header>\n<main>\n{body}\n"
            f'</main>\n<script type="application/json" id="data">{_json(data)}</script>\n'
            f"<script>\n{script}</script>",
        )
    )


def section(title: str, *body: Html, note: str = "") -> Html:
    """Return a part of a page under a heading; figures and tables flow in columns."""
    return Html(
        f'<section><h2>{escape(title)}</h2>{_paragraph(note)}<div class="flow">'
        + "\n".join(body)
        + "</div></section>"
    )


def tiles(items: Iterable[tuple[str, str, str]]) -> Html:
    """Return headline figures, from (what, figure, more about it)."""
    cells = (
        f"<div><dt>{escape(what)}</dt><dd>{escape(figure)}<small>{escape(more)}</small></dd></div>"
        for what, figure, more in items
    )
    return Html(f'<dl class="tiles">{"".join(cells)}</dl>')


def table(
    header: Sequence[str], rows: Iterable[Sequence[str | Html | float | None]], caption: str = ""
) -> Html:
    """Return a table; the first cell of a row is its heading, numbers are to the right."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(_cell(value, first=i == 0) for i, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return Html(
        f'<div class="table"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, body: Html, is_open: bool = False) -> Html:
    """Return something that is shown on demand."""
    opened = " open" if is_open else ""
    return Html(f"<details{opened}><summary>{escape(summary)}</summary>{body}</details>")


def code(text: str) -> Html:
    """Return text as it is."""
    return Html(f"<pre>{escape(text)}</pre>")


def text(words: str) -> Html:
    """Return a paragraph."""
    return Html(f"<p>{escape(words)}</p>")


def number(value: float | None) -> str:
    """Return a number as people read it: four digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e6):
        return f"{int(value)}"
    return f"{value:.4g}"


def label(name: str) -> str:
    """Return what an objective is called on a page."""
    return LABELS.get(name, name)


def colour(name: str, index: int = 0) -> str:
    """Return the CSS class of an objective's colour; others have one by their index."""
    return f"c-{name}" if name in _COLOURED else f"c-{index % _OTHERS}"


def _cell(value: str | Html | float | None, first: bool) -> str:
    if isinstance(value, str):
        shown, kind = value if isinstance(value, Html) else escape(value), ""
    else:
        shown, kind = number(value), ' class="n"'
    return f'<th scope="row">{shown}</th>' if first else f"<td{kind}>{shown}</td>"


def _paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>" if words else ""


def _json(data: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
