"""What stands in the way of a run's files is found before anything is loaded."""

from __future__ import annotations

import functools
import os
import socket
from multiprocessing import reduction
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import run_ranks
from torch.utils.data import DataLoader, Dataset

from fairhuman.common.errors import DataError, OutputError, UserError
from fairhuman.common.output_folder import check_cache, check_writable, claim
from fairhuman.data.workers import from_workers


@pytest.mark.parametrize("name", ["checkpoints", "final", "samples", "tensorboard"])
def test_a_file_in_the_way_of_a_folder(tmp_path: Path, name: str) -> None:
    check_writable(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(OutputError, match=f"{name} is in the way of a folder"):
        check_writable(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "report.html"])
def test_a_folder_a_fifo_or_a_dangling_link_in_the_way_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("none")):
        make()
        with pytest.raises(OutputError, match=f"{name} is in the way of a file"):
            check_writable(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


def claims(folder: str) -> list[str]:
    os.chdir(Path(folder) / str(dist.get_rank()))
    found = []
    for work in (
        functools.partial(claim, Path("out"), "train.output_dir", "training"),
        functools.partial(check_cache, Path("cache")),
    ):
        try:
            work()
            found.append("")
        except UserError as error:
            found.append(str(error))
    return found


def test_ranks_with_folders_of_their_own_are_refused_in_a_line(tmp_path: Path) -> None:
    """As on two machines that share no disk: relative paths from two working directories."""
    for rank in "01":
        (tmp_path / rank).mkdir()
    for place in (tmp_path / "0" / "out", tmp_path / "0" / "out" / "checkpoints"):
        place.mkdir()
        (place / ".fairhuman.probe.0123").touch()  # left by a run that was killed as it looked
    first, second = run_ranks(functools.partial(claims, str(tmp_path)), 2)
    assert first == second
    for line, key in zip(first, ("train.output_dir = 'out'", "data.cache = 'cache'"), strict=True):
        assert line.startswith(f"{key}: rank 1 does not see what rank 0 writes there")
        assert "\n" not in line
    assert not list(tmp_path.rglob(".fairhuman.probe*"))


class Broken(Dataset[int]):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error


def test_errors_of_workers_are_one_line() -> None:
    lost = FileNotFoundError(2, "No such file or directory", "/data/a.jpg")
    full = RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)")
    for error, kind, words in (
        (OutputError("data.cache: x cannot be read"), OutputError, "^data.cache: x cannot be read"),
        (lost, DataError, "cannot be read any more: .*'/data/a.jpg'"),
        (full, OutputError, "^/dev/shm: .* set data.workers=0"),
    ):
        with pytest.raises(kind, match=words) as caught:
            list(from_workers(DataLoader(Broken(error), num_workers=1)))
        assert "\n" not in str(caught.value)


def test_too_few_descriptors_for_what_workers_send_are_one_line() -> None:
    """The message is multiprocessing's own, from reduction.recvfds."""
    ends = socket.socketpair()
    ends[1].send(b"A")  # as the system passes on a message whose descriptors it had to drop
    with pytest.raises(OutputError, match="ulimit -n") as caught, ends[0], ends[1]:
        list(from_workers(reduction.recvfds(ends[0], 1) for _ in range(1)))
    assert "\n" not in str(caught.value)
