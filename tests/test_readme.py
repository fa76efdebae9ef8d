"""What the README says can be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", PYTHON)
def test_its_python_runs(code: str) -> None:
    run(code)


def test_its_loop_leaves_what_the_text_says() -> None:
    """Shares with room to spare: the digits of 300 steps of Adam differ by the processor."""
    (loop,) = (code for code in PYTHON if "fair_backward(losses" in code)
    fair = re.search(r" +solution = .*?optimizer\.step\(\)\n", loop, re.DOTALL)
    assert fair
    plain = "    optimizer.zero_grad()\n    losses.sum().backward()\n    optimizer.step()\n"
    assert "less than 3 % remains" in README
    assert most_left(loop) < 0.03
    assert "more than 40 % remains" in README
    assert most_left(loop.replace(fair[0], plain)) > 0.4


def most_left(loop: str) -> float:
    found = run(loop)
    return float((found["losses"].detach() / found["y"].var(dim=0)).max())


def run(code: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    return found


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
