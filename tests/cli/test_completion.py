"""`fairhuman completion`: the script that a shell reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fairhuman.cli import main


def test_without_its_library_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "completion" in capsys.readouterr().err


def test_bash_completes_commands_options_choices_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    bash = shutil.which("bash")
    assert bash
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()

    def completed(*words: str) -> set[str]:
        given = " ".join(f"'{word}'" for word in words)
        ask = (
            f"source '{script}'; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; "
            'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; '
            f"_shtab_fairhuman fairhuman '{words[-1]}' '{words[-2]}'; printf '%s\\n' "
            '"${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            [bash, "-c", ask], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        return {word.strip() for word in done.stdout.splitlines()}

    assert completed("fairhuman", "gen") == {"generate"}
    assert "--long-prompts" in completed("fairhuman", "generate", "--l")
    assert completed("fairhuman", "generate", "--long-prompts", "ch") == {"chunk"}
    assert completed("fairhuman", "train", "--config", "mi") == {"mine.yaml"}
