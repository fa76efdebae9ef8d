"""Pictures on a page, inside its one file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from fairhuman.common.errors import UserError
from fairhuman.common.images import ImageError, open_image
from fairhuman.common.pixels import data_uri
from fairhuman.report.parts import Html
from fairhuman.report.series import spread

SIDE = 720
"""The longest side of a picture on a page, in pixels."""
MOST = 8
"""Pictures of one run."""


def gallery(pictures: Iterable[tuple[str, Path]]) -> Html:
    """Return pictures side by side, from (caption, file)."""
    figures = "".join(
        f'<figure><img src="{_embedded(path)}" alt="{escape(caption)}" loading="lazy">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, path in pictures
    )
    return Html(f'<div class="gallery">{figures}</div>')


def chosen(sheets: Sequence[tuple[int, Path]], most: int = MOST) -> list[tuple[int, Path]]:
    """Return at most so many, evenly over time, the first and the last among them."""
    return [sheets[i] for i in spread(len(sheets), most)]


def _embedded(path: Path, side: int = SIDE) -> str:
    """Return a picture as text that a page can hold, made smaller where it is large.

    Raises:
        UserError: it cannot be read.
    """
    try:
        small = open_image(path)
    except ImageError as error:
        raise UserError(f"{path}: {error}") from None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(small, quality=85)
