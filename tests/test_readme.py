"""What the README, the docs and the examples' pages say can be run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from snippets import PAGES, ROOT, commands, snippets

from fairhuman import cli, train
from fairhuman.config import load_config
from fairhuman.config.prompt_file import read_prompt_file
from fairhuman.data.records import Reading, load_records
from fairhuman.evaluation.study.plan import load_study

OWN_LOOP = ROOT / "docs" / "own-loop.md"
GENERATED = {"config.md", "study.md", "cli.md"}
"""Pages in docs/reference that `make docs` makes."""


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


OTHERS = ("git", "cd", ".", "hf", "pdsh", "scontrol", "scancel", "kubectl")
"""Commands that are not ours."""

PYTHON = [
    pytest.param(code, id=f"{named(page)}-{number}")
    for page in PAGES
    for number, code in enumerate(snippets(page, "python"))
    if re.search(r"^(import|from) ", code, re.MULTILINE)  # others are fragments
]
COMMANDS = [
    pytest.param(words, id=f"{named(page)}: {' '.join(words)}"[:100])
    for page in PAGES
    for words in commands(page)
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code: str) -> None:
    run(code)


def test_the_loop_leaves_what_the_text_says() -> None:
    """Shares with room to spare: the digits of 300 steps of Adam differ by the processor."""
    (loop,) = (code for code in snippets(OWN_LOOP, "python") if "fair_backward(losses" in code)
    fair = re.search(r" +solution = .*?optimizer\.step\(\)\n", loop, re.DOTALL)
    assert fair
    plain = "    optimizer.zero_grad()\n    losses.sum().backward()\n    optimizer.step()\n"
    text = OWN_LOOP.read_text(encoding="utf-8")
    assert "less than 3 % remains" in text
    assert most_left(loop) < 0.03
    assert "more than 40 % remains" in text
    assert most_left(loop.replace(fair[0], plain)) > 0.4


def most_left(loop: str) -> float:
    found = run(loop)
    return float((found["losses"].detach() / found["y"].var(dim=0)).max())


def run(code: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(compile(code, "a snippet", "exec"), found)
    return found


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_are_understood(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option, target, module, file of the project and key of a config exists."""
    monkeypatch.chdir(ROOT)
    check(words)


def check(words: list[str]) -> None:
    for word in words:
        file = word.partition("=")[2] or word
        if file.startswith(("configs/", "examples/")):
            assert Path(file).exists(), file
    program, arguments = words[0], words[1:]
    if program == "fairhuman":
        if ">" in arguments:
            arguments = arguments[: arguments.index(">")]
        cli.make_parser().parse_args(arguments)
    elif program in ("deepspeed", "torchrun") and "fairhuman/train.py" in arguments:
        start = arguments.index("fairhuman/train.py") + 1
        given = train.make_parser().parse_args(arguments[start:])
        load_config(given.config, given.overrides)
    elif program in ("python", "deepspeed") and {"-m", "--module"} & set(arguments):
        module = arguments[[word in ("-m", "--module") for word in arguments].index(True) + 1]
        assert importlib.util.find_spec(module), module
    elif program in ("python", "torchrun"):
        assert any(word.startswith("examples/") for word in arguments)
    elif program == "make":
        targets = re.findall(r"^\.PHONY:(.*)", Path("Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in " ".join(targets).split()
    elif program == "pip":
        project = Path("pyproject.toml").read_text()
        section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
        extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
        for asked in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            assert set(asked.split(",")) <= extras
    else:
        assert program in OTHERS, f"{program}: nothing here knows this command"


def test_configs_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = [code for page in PAGES for code in snippets(page, "yaml")]
    assert len(found) >= 2
    for code in found:
        file = tmp_path / "config.yaml"
        file.write_text(code, encoding="utf-8")
        if "\narms:" in code:
            load_study(file)
        elif "\n- " in code and "\ntrain:" not in code:
            assert read_prompt_file(file)
        else:
            load_config(file)


def test_settings_of_other_trainers_have_their_names_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "from-other-trainers.md").read_text(encoding="utf-8")
    first_column = re.findall(
        r"^\| (`[a-z].*?) \|", text.split("## Setting names")[1], re.MULTILINE
    )
    named_here = [word for cell in first_column for word in re.findall("`(.+?)`", cell)]
    assert len(named_here) > 50
    for word in named_here:
        key, _, value = word.partition(": ")
        overrides = ["data.root=null", "data.sources=[{root: x}]"]
        overrides += [f"{key}={value}"] * bool(value)
        place: Any = load_config(Path("configs/sdxl_lora.yaml"), overrides)
        for part in key.split("."):
            place = getattr(place[0] if isinstance(place, list) else place, part)
    (targets,) = re.findall(r"`(model\.lora\.targets=.+?)`", text)
    load_config(Path("configs/sdxl_lora.yaml"), [targets])


def test_lines_of_metadata_are_a_data_set(tmp_path: Path) -> None:
    lines = [line for page in PAGES for code in snippets(page, "json") for line in code.split("\n")]
    for line in filter(None, lines):
        Image.new("RGB", (640, 480)).save(tmp_path / json.loads(line)["file_name"])
        (tmp_path / "metadata.jsonl").write_text(f"{line}\n", encoding="utf-8")
        records, problems = load_records(tmp_path, Reading(("face", "hand")))
        assert len(records) == 1
        assert not problems


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        target = (page.parent / link).resolve()
        made = target.parent.name == "reference" and target.name in GENERATED
        assert made or target.exists(), link


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
