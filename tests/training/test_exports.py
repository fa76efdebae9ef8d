"""Steps of a run, exported as OUT/final is, and drawn with side by side."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from runs import train, write_config
from safetensors.torch import load_file

from fairhuman.checkpointing.manifest import Best, Progress
from fairhuman.cli import main
from fairhuman.common.run_folder import export_folder
from fairhuman.training.exports import export_due, mark_best_export

LORA = ["model.method=lora", "model.lora.rank=2", "optimizer.warmup_steps=0"]
FILE = "pytorch_lora_weights.safetensors"


def progress(step: int, best: int | None = None) -> Progress:
    found = Best("val/loss/global", 1.0, best) if best is not None else None
    return Progress(step, step, 0, found)


@pytest.mark.parametrize(
    ("every", "step", "best", "due"),
    [
        (0, 4, 4, False),
        (2, 4, None, True),
        (2, 5, None, False),
        (2, 5, 5, True),
        (2, 5, 4, False),
    ],
)
def test_what_is_due(every: int, step: int, best: int | None, due: bool) -> None:
    assert export_due(every, progress(step, best)) is due


def test_the_best_export_is_kept_and_the_one_before_if_it_was_due_anyway(tmp_path: Path) -> None:
    exports = tmp_path / "exports"

    def write(step: int, best: int) -> list[str]:
        export_folder(tmp_path, step).mkdir(parents=True)
        mark_best_export(tmp_path, 2, progress(step, best))
        return sorted(path.name for path in exports.iterdir() if not path.is_symlink())

    assert write(2, 2) == ["step-00000002"]
    assert write(3, 3) == ["step-00000002", "step-00000003"]
    assert write(4, 3) == ["step-00000002", "step-00000003", "step-00000004"]
    assert (exports / "best").resolve().name == "step-00000003"
    assert write(5, 5) == ["step-00000002", "step-00000004", "step-00000005"]
    assert (exports / "best").resolve().name == "step-00000005"


@pytest.fixture(scope="module")
def run(tiny_model: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config, output = write_config(folder, tiny_model, people), folder / "out"
    more = ["train.steps=4", "train.export_every=2", "train.keep_best=val/loss/global"]
    train(config, output, 1, *LORA, *more, "train.checkpoint_every=0", "train.validate_every=1")
    return output


def test_each_export_is_what_the_run_had_then(run: Path, tmp_path: Path) -> None:
    second, last = (load_file(run / f"exports/step-0000000{step}" / FILE) for step in (2, 4))
    final = load_file(run / "final" / FILE)
    assert second.keys() == last.keys() == final.keys()
    assert all((last[name] == final[name]).all() for name in final)
    assert any((second[name] != final[name]).any() for name in final)
    assert "| steps | 2 |" in (run / "exports/step-00000002/README.md").read_text()
    assert (run / "exports" / "best").is_dir()
    for folder in sorted((run / "exports").iterdir()):
        out = tmp_path / f"{folder.name}.safetensors"
        words = ["export", "--model", str(folder), "--to", "comfy-lora", "--out", str(out)]
        assert main(words) == 0
        assert out.is_file()


def test_steps_are_drawn_side_by_side(run: Path, tmp_path: Path) -> None:
    out, prompts = tmp_path / "sheet.html", tmp_path / "prompts.yaml"
    prompts.write_text("- a boy\n- {prompt: a <girl>, steps: 2}\n")
    words = ["compare", str(run), "--steps", "base,2,final", "--prompts", str(prompts)]
    words += ["--seeds", "0,1", "--lora-scales", "0,1", "--out", str(out)]
    assert main(words) == 0
    page = out.read_text()
    heads = re.findall(r'<th scope="col">(.*?)</th>', page)
    assert heads == [
        "", "base", "step 2, LoRA x 0", "step 2, LoRA x 1", "final, LoRA x 0", "final, LoRA x 1",
    ]  # fmt: skip
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    names = ["a boy (seed 0)", "a boy (seed 1)", "a &lt;girl&gt; (seed 0)"]
    assert [name for name, _ in rows] == [*names, "a &lt;girl&gt; (seed 1)"]
    for _, cells in rows:
        base, none, _, none_too, _ = re.findall(r'src="(.*?)"', cells)
        assert none == none_too  # strength 0: whatever was trained
        assert len(base) == len(none) or abs(len(base) - len(none)) < 100
    columns = zip(*(re.findall(r'src="(.*?)"', cells) for _, cells in rows), strict=True)
    assert len({tuple(column) for column in columns}) >= 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "3x"], "--steps 3x: "),
        (["--seeds", "a"], "--seeds a: must be a list such as 0,1,2"),
        (["--out", "sheet.png"], "--out sheet.png: must end in .html"),
        ([], "--prompts: the run has no train.sample_prompts"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[Any], told: str
) -> None:
    assert main(["compare", str(run), *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert told in said


def test_a_run_without_exports_says_how_to_get_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["compare", str(tmp_path)]) == 2
    assert "has exported nothing; train with train.export_every" in capsys.readouterr().err
