"""The pictures of a study's arms side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fairhuman.common.images import open_image

GAP, HEAD = 4, 34


def sheet(columns: Sequence[tuple[str, Sequence[Image.Image]]], rows: int) -> Image.Image:
    """Return a column per arm with its name above, a row per prompt.

    Args:
        columns: name and pictures, all of one size.
        rows: how many of the pictures.
    """
    width, height = columns[0][1][0].size
    image = Image.new(
        "RGB",
        (len(columns) * (width + GAP) + GAP, HEAD + rows * (height + GAP)),
        (255, 255, 255),
    )
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for index, (name, pictures) in enumerate(columns):
        left = GAP + index * (width + GAP)
        lines = _wrapped(name, font, width)
        pen.multiline_text((left, 2), "\n".join(lines[:2]), (20, 24, 30), font, spacing=1)
        for row, picture in enumerate(pictures[:rows]):
            image.paste(picture, (left, HEAD + row * (height + GAP)))
    return image


def opened(folder: Path) -> list[Image.Image]:
    """Return a run's pictures, in the order of their prompts."""
    return [open_image(path) for path in sorted(folder.glob("[0-9]*.png"))]


def _wrapped(
    words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
