"""What the README says can be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_its_python_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})
    for number in re.findall(r"0\.\d{4}", capsys.readouterr().out):
        # To a tenth, for other versions and processors round differently.
        quoted = [float(text) for text in re.findall(r"\b0\.\d{4}\b", README)]
        assert any(abs(float(number) - q) <= max(0.1 * q, 2e-4) for q in quoted), number


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
