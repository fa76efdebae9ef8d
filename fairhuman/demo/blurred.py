"""Pictures whose faces and hands are blurred: people without the details that a region trains."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFilter

from fairhuman.data.regions import Box


def blurred(image: Image.Image, boxes: Sequence[Box], share: float) -> Image.Image:
    """Return a picture with its boxes blurred, the edges of the blur soft.

    Args:
        image: any size.
        boxes: [x, y, width, height] in its pixels.
        share: standard deviation of the blur, in longer sides of the box that is blurred.
    """
    found = image.copy()
    for x, y, width, height in boxes:
        radius = share * max(width, height)
        mask = Image.new("L", image.size, 0)
        edges = [x - radius, y - radius, x + width + radius, y + height + radius]
        ImageDraw.Draw(mask).rectangle(edges, fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(radius / 2))
        found.paste(image.filter(ImageFilter.GaussianBlur(radius)), (0, 0), mask)
    return found
