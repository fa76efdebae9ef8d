"""A checkpoint of links, pipes, sockets, or files that its manifest does not name is refused."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fairhuman import checkpointing
from fairhuman.checkpointing.manifest import Best, Manifest, Progress
from fairhuman.common.errors import ConfigError


def whole(output: Path, step: int) -> Path:
    folder = output / "checkpoints" / f"step-{step:08d}"
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / "mp_rank_00_model_states.pt").write_bytes(b"weights")
    (folder / "layout.json").write_text('{"shapes": {}, "ranks": []}')
    files = {"deepspeed/mp_rank_00_model_states.pt": 7, "layout.json": 27}
    Manifest(1, Progress(step, 8 * step), files).write(folder)
    return folder


def linked_folder(folder: Path) -> None:
    elsewhere = folder.parent.parent / "elsewhere"
    shutil.move(folder / "deepspeed", elsewhere)
    (folder / "deepspeed").symlink_to(elsewhere)


def linked_file(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        elsewhere = folder.parent.parent / "elsewhere"
        shutil.move(folder / name, elsewhere)
        (folder / name).symlink_to(elsewhere)

    return change


def linked_whole(folder: Path) -> None:
    elsewhere = folder.parent.parent / "elsewhere"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


def pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def bound(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        made.bind("s.pt")
        os.chdir(here)


def added(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).write_bytes(b"x")

    return add


WRONG: dict[str, Callable[[Path], None]] = {
    "the folder deepspeed is a link": linked_folder,
    "a state is a link": linked_file("deepspeed/mp_rank_00_model_states.pt"),
    "the layout is a link": linked_file("layout.json"),
    "the manifest is a link": linked_file("manifest.json"),
    "the checkpoint is a link": linked_whole,
    "a link that leads nowhere": lambda folder: (folder / "x").symlink_to("nowhere"),
    "a state is a pipe": pipe("deepspeed/mp_rank_00_model_states.pt"),
    "the manifest is a pipe": pipe("manifest.json"),
    "a pipe that is not named": pipe("other"),
    "a socket": bound,
    "a state that is not named": added("deepspeed/zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    "a balancer that is not named": added("balancer.pt"),
    "an average that is not named": added("ema_rank_0.safetensors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_by_name_and_passed_over_by_auto(name: str, tmp_path: Path) -> None:
    first, second = whole(tmp_path, 1), whole(tmp_path, 2)
    assert checkpointing.find(tmp_path, "auto") == second
    WRONG[name](second)
    assert checkpointing.find(tmp_path, "auto") == first
    with pytest.raises(ConfigError) as caught:
        checkpointing.find(tmp_path / "other", str(second))
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_s_own_link_to_its_best_is_taken_and_others_are_not(tmp_path: Path) -> None:
    first = whole(tmp_path, 1)
    whole(tmp_path, 2)
    checkpointing.mark_best(tmp_path, Best("val/loss/hand", 0.5, 1))
    best = tmp_path / "checkpoints" / "best"
    assert checkpointing.find(tmp_path / "other", str(best)) == first
    best.unlink()
    shutil.copytree(first, tmp_path / "elsewhere")
    best.symlink_to("../elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        checkpointing.find(tmp_path / "other", str(best))


def test_a_note_that_nobody_opens_does_no_harm(tmp_path: Path) -> None:
    folder = whole(tmp_path, 1)
    (folder / "notes.txt").write_text("the good one")
    assert checkpointing.find(tmp_path, "auto") == folder


def test_where_none_can_be_taken_the_run_does_not_start_over(tmp_path: Path) -> None:
    for step in (1, 2):
        linked_file("layout.json")(whole(tmp_path, step))
        (tmp_path / "elsewhere").rename(tmp_path / str(step))
    with pytest.raises(ConfigError, match="none of the 2 checkpoints") as caught:
        checkpointing.find(tmp_path, "auto")
    assert len(str(caught.value).splitlines()) == 1
