"""The frame of an HTML page that is one file."""

from __future__ import annotations

from html import escape


def document(title: str, style: str, body: str) -> str:
    """Return a whole page.

    Args:
        title: plain text.
        style: CSS.
        body: markup.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )
