"""A checkpoint with any one bit flipped is not resumed from; `auto` takes the one before."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks
from small_net import Case, net

CASE = Case(2, optimizer="AdamW")
FLIPS_PER_FILE = 2
IN_THE_MANIFEST = 20


def flips(folder: Path) -> list[tuple[Path, int, int]]:
    """A file, the place of a byte in it, and the bit: some of each file, more of the manifest."""
    rng = np.random.default_rng(0)
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        count = IN_THE_MANIFEST if path.name == "manifest.json" else FLIPS_PER_FILE
        for _ in range(count):
            place, bit = int(rng.integers(path.stat().st_size)), int(rng.integers(8))
            found.append((path, place, bit))
        if path.name == "manifest.json":  # its own digest, and what closes it
            size = path.stat().st_size
            found += [(path, place, 2) for place in range(size - 84, size, 4)]
    return found


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def launch(output: Path) -> dict[str, Any]:
    import torch.distributed as dist

    from fairhuman import checkpointing
    from fairhuman.checkpointing.manifest import Progress, read_manifest
    from fairhuman.common.errors import ConfigError
    from fairhuman.training.resume import find_start
    from fairhuman.zero.ema import EMA
    from fairhuman.zero.engine import make_engine

    class SlowEMA(EMA):
        """Whose file has a passing name for a while on rank 1, as safetensors writes it."""

        def state(self) -> dict[str, Any]:
            passing = output / "slow/checkpoints/step-00000001.partial/.tmpXYZ"
            if dist.get_rank() == 1:
                passing.write_bytes(b"half")
                time.sleep(1)
                passing.unlink()
            return super().state()

    config = CASE.config()
    train = config.train.model_copy(update={"output_dir": str(output), "resume": "auto"})
    config = config.model_copy(update={"train": train})
    engine = make_engine(config, net())
    first, second = (
        checkpointing.Saver(engine, output, 9, config=config).save(
            Progress(step, 6 * step, 0), {"n": 1}
        )
        for step in (1, 2)
    )
    assert find_start(config).folder == second
    ema = SlowEMA(engine, 0.9)
    signed = checkpointing.Saver(engine, output / "slow", 9, ema=ema).save(Progress(1, 6, 0))
    listed = set(read_manifest(signed).digests or ())
    missed, loaded = [], []
    for number, where in enumerate(flips(second)):
        dist.barrier()
        if dist.get_rank() == 0:
            flip(*where)
        dist.barrier()
        found = find_start(config)
        told = [line for line in found.lines if line.startswith(f"passed over {second}: it ")]
        if found.folder != first or len(told) != 1:
            missed.append((*where, found.lines))
        if number % 9 == 0:
            try:
                checkpointing.load(engine, second)
                loaded.append(where)
            except ConfigError:
                pass
        dist.barrier()
        if dist.get_rank() == 0:
            flip(*where)
    dist.barrier()
    whole = find_start(config).folder == second
    for folder in (first, second):
        dist.barrier()
        if dist.get_rank() == 0:
            flip(folder / "layout.json", 5, 0)
    dist.barrier()
    try:
        find_start(config)
        started_over = "yes"
    except ConfigError as error:
        started_over = str(error)
    return {
        "missed": missed,
        "loaded": loaded,
        "whole": whole,
        "all damaged": started_over,
        "listed": listed,
    }


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(launch, CASE.ranks, tmp_path_factory.mktemp("runs"))


def test_no_flipped_bit_is_resumed_from(launched: list[dict[str, Any]]) -> None:
    for found in launched:
        assert found["missed"] == []
        assert found["loaded"] == []
        assert found["whole"]


def test_only_finished_files_are_digested(launched: list[dict[str, Any]]) -> None:
    for found in launched:
        assert {"ema_rank_0.safetensors", "ema_rank_1.safetensors"} <= found["listed"]
        assert ".tmpXYZ" not in found["listed"]


def test_where_all_are_damaged_the_run_does_not_start_over(launched: list[dict[str, Any]]) -> None:
    for found in launched:
        assert "none of the 2 checkpoints" in found["all damaged"]
        assert len(found["all damaged"].splitlines()) == 1


def test_the_ranks_share_the_files_and_leave_none_out() -> None:
    from fairhuman.common.digests import share

    rng = np.random.default_rng(0)
    for ranks, count in itertools.product((1, 2, 3, 7), (0, 1, 5, 40)):
        files = {str(i): int(rng.integers(0, 1000)) for i in range(count)}
        shares = [share(files, rank, ranks) for rank in range(ranks)]
        assert sorted(itertools.chain(*shares)) == sorted(files)
        loads = [sum(files[name] for name in names) for names in shares]
        assert max(loads) <= sum(loads) / ranks + max(files.values(), default=0)


def test_damaged_ones_do_not_push_good_ones_out(tmp_path: Path) -> None:
    """Passed over at step 9, the run writes step 5 and 6: these stay, and not the damaged one."""

    from fairhuman import checkpointing

    for step in (4, 5, 9):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    checkpointing.rotate(tmp_path / "checkpoints", 1, None, 5)
    kept = sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["5", "9"]
