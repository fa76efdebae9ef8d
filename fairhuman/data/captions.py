"""Caption files next to images: `a.txt`, `a.caption`, `a.png.txt`, `a.png.caption`.

The endings may be in capitals. Of several files that hold different captions for one image, the
first in this order is taken. A file without words holds no caption.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fairhuman.common.errors import DataError
from fairhuman.common.text_files import NotPlainError, TooLargeError, read_up_to

ENDINGS = (".txt", ".caption")

# The longest file that is taken for a caption, in bytes.
LONGEST = 1 << 20

# By byte order mark; UTF-32's begins with UTF-16's.
MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}

# A line of YOLO's label files, which have the names of caption files; or an empty line.
YOLO = re.compile(r"\s*|\s*\d+(\s+[01](\.\d+)?){4,}\s*")

LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Caption:
    """What a caption file holds."""

    file: str
    """Its name, without its folder."""
    lines: tuple[str, ...]
    """Its lines that hold words."""
    others: tuple[str, ...] = ()
    """Further caption files of the image, which say something else."""

    @property
    def text(self) -> str:
        """All of it, on one line."""
        return " ".join(self.lines)

    def passed_over(self) -> str:
        """Return a sentence about the others."""
        return f"{self.file} is its caption; {', '.join(self.others)} says otherwise, not taken"


class CaptionFiles:
    """The caption files of images; every folder is listed once."""

    def __init__(self, endings: Sequence[str] = ENDINGS) -> None:
        """Look for files with these endings, in lower case; the first is preferred."""
        self._endings = tuple(endings)
        self._folders: dict[Path, dict[str, list[str]]] = {}

    def find(self, image: Path) -> list[str]:
        """Return the names of an image's caption files, the first one to be taken."""
        listed = self._listed(image.parent)
        names = [f"{base}{end}" for base in (image.stem, image.name) for end in self._endings]
        return [file for name in names for file in listed.get(_folded(name), ())]

    def read(self, image: Path) -> Caption | None:
        """Return an image's caption; None: it has none.

        Raises:
            DataError: a caption file cannot be read.
        """
        found = [Caption(name, _lines(image.with_name(name))) for name in self.find(image)]
        found = [caption for caption in found if caption.lines]
        if not found:
            return None
        first = found[0]
        others = tuple(other.file for other in found[1:] if other.text != first.text)
        return replace(first, others=others)

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._folders:
            try:
                names = sorted(os.listdir(folder))
            except OSError as error:
                raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
            listed: dict[str, list[str]] = {}
            for name in names:
                if name.lower().endswith(self._endings):
                    listed.setdefault(_folded(name), []).append(name)
            for same in listed.values():
                # a.txt before a.TXT.
                same.sort(key=lambda name: (name != _folded(name), name))
            self._folders[folder] = listed
        return self._folders[folder]


def _lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a caption file that hold words, single spaces between them.

    Raises:
        DataError: it cannot be read as text.
    """
    try:
        content = read_up_to(path, LONGEST)
    except NotPlainError:
        raise DataError(f"{path}: is not a file") from None
    except TooLargeError:
        raise DataError(f"{path}: is larger than {LONGEST >> 20} MiB, so not a caption") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not {encoding.removesuffix('-sig').upper()} (byte {error.start}); save "
            "it as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(f"{path}: holds null bytes, so not UTF-8; save it as UTF-8")
    if text.strip() and all(map(YOLO.fullmatch, text.split("\n"))):
        raise DataError(f"{path}: holds YOLO's boxes, no caption; `fairhuman import yolo` reads it")
    return tuple(" ".join(line.split()) for line in LINE_END.split(text) if line.strip())


def _folded(name: str) -> str:
    """Return a name with its ending in small letters; the rest names the image."""
    base, ending = os.path.splitext(name)
    return base + ending.lower()
