"""Image files: which are opened at all, and how.

Only files of FORMATS are opened, whatever their names say: other readers of Pillow start programs
(PostScript) or are hardly looked after. Of a file with several pictures (animations, the pages of
a TIFF, the two views of an MPO) the first is read. Files with more than MAX_PIXELS are refused
before they are decoded.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from fairhuman.common.readable import Readable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
"""What is opened, as Pillow calls it; MPO is a JPEG to it. TGA is opened too, by its suffix: it
has no signature, and any bytes could be taken for it."""

SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
))  # fmt: skip
"""The suffixes of these formats, in lower case."""

UNOPENABLE = frozenset((
    ".arw", ".bpg", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".flif", ".hdr", ".heic",
    ".heif", ".hif", ".icns", ".ico", ".jxl", ".jxr", ".nef", ".orf", ".pcx", ".pef", ".pfm",
    ".psb", ".psd", ".qoi", ".raf", ".rw2", ".srw", ".svg", ".wdp", ".wmf", ".xcf",
))  # fmt: skip
"""Suffixes of pictures that are not opened, in lower case: who lists a folder should say so."""

MAX_PIXELS = 89_478_485
"""The largest picture that is decoded, in pixels: where Pillow begins to warn of decompression
bombs. 9,459 x 9,459 px, which take 358 MB as RGB."""

_TOO_LARGE = f"has more than {MAX_PIXELS:,} pixels: make it smaller"

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""


class ImageError(ValueError):
    """A file that cannot be used as an image or a mask; one line that does not name the file."""


def upright_size(path: Readable) -> tuple[int, int]:
    """Return width and height as `open_image` would give them, from the file's head alone.

    Raises:
        ImageError: as `open_image`, but for damage past the head.
    """
    with opened(path) as image:
        width, height = image.size
        # Pillow gives the size of a TIFF upright.
        turned = image.format != "TIFF" and orientation(image) >= 5
        return (height, width) if turned else (width, height)


def load(path: Readable) -> tuple[Image.Image, bool]:
    """Read a file as it is stored, but upright.

    Returns:
        The picture in its own mode, and whether 16 bits per channel were cut to 8 on the way.

    Raises:
        ImageError: see `open_image`.
    """
    with opened(path) as image:
        deep = image.mode[0] not in "IF" and any(";16" in str(tile.args) for tile in image.tile)
        image.load()
        twelve = image.format == "TIFF" and image.mode == "I;16" and _bits(image) == 12
        picture = _of_16_bits(image) if twelve else image
        # Not ImageOps.exif_transpose, which rewrites EXIF and fails on what it cannot write.
        turn = TURNS.get(orientation(image))
        return (picture if turn is None else picture.transpose(turn)), deep


def _bits(image: Image.Image) -> int:
    """Return how many bits a grey TIFF has per pixel."""
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))  # type: ignore[attr-defined]
    return int(bits[0])


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Return a grey picture of 12 bits, which Pillow leaves in the lower ones, with 16."""
    values = np.asarray(image).astype(np.uint16)
    scaled = Image.fromarray((values << 4) | (values >> 8))
    scaled.info = image.info
    return scaled


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return an image without its transparency, and that as grey; None where it has none."""
    if image.mode in ("PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return image.convert("RGB"), image.getchannel("A")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    return image, None


@contextmanager
def decoding() -> Iterator[None]:
    """Raise an ImageError for whatever Pillow raises."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(_TOO_LARGE) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"cannot be read as an image: it is none of {', '.join(FORMATS)}"
        ) from None
    # Pillow names no set of errors: for hostile bytes its readers raise struct.error, KeyError,
    # TypeError, OverflowError, MemoryError, zlib.error and more.
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ImageError(f"cannot be read as an image: {lines[0][:200]}") from None


@contextmanager
def opened(path: Readable) -> Iterator[ImageFile.ImageFile]:
    """Open a file of one of FORMATS without decoding it."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("is a folder or a device, not a file")
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("there is no such file") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None
    except ImageError:
        raise
    except ValueError:  # a NUL, or half a surrogate pair
        raise ImageError("no file can have this name") from None
    formats = (*FORMATS, "TGA") if path.suffix.lower() == ".tga" else FORMATS
    # By its content: Pillow maps files that it opens by name into memory, and a file that is cut
    # short meanwhile would then kill the process.
    with file, decoding(), Image.open(file, formats=formats) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(_TOO_LARGE)
        if not image.width * image.height:
            raise ImageError("has no pixels")
        yield image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where EXIF has none or cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Pillow's reader of EXIF raises what its parts raise; viewers show such a picture as stored.
    except Exception:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1
