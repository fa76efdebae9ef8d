"""The fenced snippets of README, docs and examples, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)


def snippets(page: Path, language: str) -> list[str]:
    """Return what a page has in fences of a language."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [str(code) for code in found]


def files(page: Path) -> dict[str, str]:
    """Return a page's snippets that have a title, which is the name of a file, by that name."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    return {str(name): str(content) for name, content in found}


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command in a page's `console` snippets, without comments.

    Of a snippet with a prompt (`$ `), the lines without one are output.
    """
    found = []
    for snippet in snippets(page, "console"):
        lines = snippet.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    found.append(words)
                    words = []
    return found
