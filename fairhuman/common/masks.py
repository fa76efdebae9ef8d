"""What a mask file means: which of its pixels are the region.

| the file holds | the region is |
| --- | --- |
| grey, brightest pixel 128 or more of 255 | as bright as it is, soft edges included |
| nothing but 0 and 1 | 1 |
| 16 or 32 bits, brightest pixel up to 255 | as in 8 bits |
| 16 or 32 bits, brightest pixel 32768 to 65535 | as bright as it is, of 65535 |
| floating point from 0 to at most 1, or 255, or 65535 | as bright as it is, of that |
| one colour on black (a palette too) | what has the colour, shades of it in part |
| one colour (black too) and alpha that varies | what is opaque |
| grey whose transparent pixels are black | as bright as it is |
| black alone | nowhere |

Alpha that is the same everywhere, but for 0, says nothing. Everything else is refused, for it could
mean several things: a brightest pixel between 1 and 128 (class numbers?), several colours, a
background that is not black, alpha that contradicts the grey. ICC profiles are not applied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairhuman.common.imagefiles import ImageError, split_alpha

# How far JPEG and rounding take a channel from where it was.
NOISE = 16
# The darkest colour that counts as one: the darkest of the PASCAL VOC palette.
DARKEST = 32

_FIX = "white must be the region, black the rest"

Grey = NDArray[np.uint8]


def region_of(image: Image.Image, deep: bool) -> NDArray[np.uint8]:
    """Return where a mask's region is, [H, W], 255 = region.

    Args:
        image: the file's picture in the mode that it is stored in.
        deep: whether 16 bits per channel were cut to 8 when it was read.

    Raises:
        ImageError: its meaning is not plain.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _of_range(np.asarray(image))
    labels = image.mode in ("P", "PA")
    colours, alpha = split_alpha(image)
    if colours.mode not in ("1", "L", "RGB"):
        colours = colours.convert("RGB")
    grey = np.asarray(colours.convert("L") if colours.mode == "1" else colours)
    if alpha is not None:
        opacity = np.asarray(alpha)
        if _by_alpha(grey, opacity):
            return _of_grey(opacity, deep, "most opaque")
    if grey.ndim == 3:
        coloured = _of_colour(grey, labels)
        if coloured is not None:
            return coloured
        grey = _brightest(grey)
    return _of_grey(grey, deep, "brightest")


def _of_grey(grey: Grey, deep: bool, word: str) -> Grey:
    most = int(grey.max(initial=0))
    if most >= 128 or (most == 0 and not deep):
        return grey
    if most == 1 and not deep:
        return grey * np.uint8(255)
    # Of 16 bits the lower 8 are lost: 255 of 65535 looks like 0.
    most, full = (most * 256, 65535) if deep else (most, 255)
    raise ImageError(f"its {word} pixel is {'about ' * deep}{most} of {full}: {_FIX}")


def _of_range(stored: NDArray[Any]) -> Grey:
    """Read numbers of more than 8 bits by the range that they fill."""
    # Exact for what is not refused: 65535 * 255 is below 2 ** 24.
    values = stored.astype(np.float32)
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ImageError(f"holds numbers below 0 or none at all (NaN): {_FIX}")
    most = float(values.max(initial=0))
    for full in (1, 255, 65535):
        if most <= full:
            if 2 * most >= full or most == 0:
                return (values * 255 / full).astype(np.uint8)
            break
    raise ImageError(f"its brightest pixel is {most:g}, which is neither 1, 255 nor 65535: {_FIX}")


def _of_colour(pixels: Grey, labels: bool) -> Grey | None:
    """Read a mask of one colour on black, [H, W, 3]; None where it is grey.

    `labels`: there is a palette, whose colours are names and not shades of each other.
    """
    level = _brightest(pixels)
    most = int(level.max(initial=0))
    if most < DARKEST or int((level - 255 + _brightest(np.uint8(255) - pixels)).max()) <= NOISE:
        return None
    colour = np.median(pixels[level >= 0.75 * most], axis=0).astype(np.float32)
    colour *= most / colour.max()
    share = level / np.float32(most)
    for channel in range(3):  # one by one, for memory
        if np.abs(pixels[..., channel] - share * colour[channel]).max() > 2 * NOISE:
            raise ImageError(
                f"holds more than one colour on black (JPEG makes several of one at edges): {_FIX}"
            )
    if labels and len(np.unique(level[level > 0])) > 1:
        raise ImageError(f"its palette gives it more than one colour on black: {_FIX}")
    return (share * 255).round().clip(0, 255).astype(np.uint8)


def _brightest(pixels: Grey) -> Grey:
    """Return the largest of a pixel's three channels."""
    first, second, third = (pixels[..., channel] for channel in range(3))
    return np.maximum(np.maximum(first, second), third)


def _by_alpha(colours: Grey, alpha: Grey) -> bool:
    """Return whether the region is what is opaque; otherwise alpha says nothing of its own."""
    least, most = int(alpha.min(initial=255)), int(alpha.max(initial=0))
    levels = colours if colours.ndim == 2 else _brightest(colours)
    if most == 0 and levels.max(initial=0) > 0:
        raise ImageError(f"is transparent everywhere, but not black: {_FIX}, without transparency")
    if least == most:
        return False
    shown, hidden = colours[alpha > most / 2], levels[alpha <= most / 2]
    plain = int(np.ptp(shown, axis=0).max()) <= NOISE
    black = plain and int(shown.max()) <= NOISE
    if plain and not (black and hidden.max(initial=0) > NOISE):
        return True
    if (levels[alpha < 255].max(initial=0)) <= NOISE:
        return False
    raise ImageError(f"its transparency contradicts its grey: {_FIX}, without transparency")


def extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the box (x, y, width, height) around what is true in [H, W]; None if nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    left, top = int(columns[0]), int(rows[0])
    return (left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top)
