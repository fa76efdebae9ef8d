"""The pictures that are measured, and their prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fairhuman.common.errors import DataError, UserError
from fairhuman.common.imagefiles import opened
from fairhuman.data.captions import CaptionFiles
from fairhuman.data.folder import find_images, named_files, open_photograph, read_rows
from fairhuman.data.records import SHOWN
from fairhuman.evaluation.missing import MissingError

SHEET = "grid.png"
"""All pictures on one sheet, as `fairhuman generate` writes it next to them."""


@dataclass(frozen=True)
class Pictures:
    """The images of a folder and of those below it."""

    root: Path
    names: list[str]
    """Sorted, relative to the folder."""

    def __len__(self) -> int:
        return len(self.names)

    def open(self, name: str) -> Image.Image:
        """Return an image as the trainer has it: upright, RGB, transparency on white, 8 bits.

        Raises:
            DataError: it cannot be read.
        """
        return open_photograph(self.root / name)

    def __iter__(self) -> Iterator[Image.Image]:
        return map(self.open, self.names)


def find_pictures(root: Path) -> Pictures:
    """Return the images of a folder; each has been opened whole.

    Left out are hidden files, the sheet that `fairhuman generate` writes, and in a data set its
    masks and control images.

    Raises:
        DataError: there is no such folder, or no image; or images cannot be read: which.
    """
    names, problems = find_images(root, exclude=[SHEET, *named_files(read_rows(root))])
    if not names and not problems:
        raise DataError(f"{root}: holds no image (.jpg, .png, .webp, …)")
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        broken = [line for line in pool.map(_broken, (root / name for name in names)) if line]
    lines = [str(problem) for problem in problems] + broken
    if lines:
        more = [f"{root}: and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise DataError("\n".join([*lines[:SHOWN], *more, f"{root}: fix or remove these"]))
    return Pictures(root, names)


def find_prompts(pictures: Pictures, file: Path | None) -> list[str]:
    """Return the prompt of each picture.

    Without a file, it is what `fairhuman generate` wrote into the PNG, or the .txt file of the
    same name, or `text` in the folder's metadata.jsonl.

    Args:
        pictures: n of them.
        file: one prompt per line, in the order of the pictures' names. Where there are k times
            as many pictures (`generate --count k`), each line stands for k in a row.

    Raises:
        UserError: the file cannot be read, or has another number of lines.
        MissingError: there is no file, and a picture without a prompt.
    """
    if file:
        from fairhuman.config.prompt_file import read_prompts

        prompts = read_prompts(file)
        if not prompts or len(pictures) % len(prompts):
            raise UserError(
                f"--prompts {file}: has {len(prompts)} lines for {len(pictures)} pictures in "
                f"{pictures.root}; it needs one for each picture, or for each k in a row"
            )
        each = len(pictures) // len(prompts)
        return [prompt for prompt in prompts for _ in range(each)]
    rows = {row["file_name"]: row.get("text") for row in read_rows(pictures.root)}
    captions = CaptionFiles()
    found = [_prompt(pictures.root / name, captions) or rows.get(name) for name in pictures.names]
    without = [
        name for name, text in zip(pictures.names, found, strict=True) if not isinstance(text, str)
    ]
    if without:
        raise MissingError(
            f"{len(without)} of {len(found)} pictures have no prompt, such as {without[0]}: give "
            "--prompts FILE, or a .txt file next to each picture"
        )
    return [str(text) for text in found]


def _broken(path: Path) -> str | None:
    try:
        open_photograph(path)
    except DataError as error:
        return str(error)
    return None


def _prompt(path: Path, captions: CaptionFiles) -> str | None:
    with opened(path) as image:
        said = image.info
    # Other programs keep other things under "prompt", such as ComfyUI its whole graph.
    if isinstance(said.get("prompt"), str) and "guidance" in said:
        return str(said["prompt"]) or None
    caption = captions.read(path)
    return caption.text if caption else None
