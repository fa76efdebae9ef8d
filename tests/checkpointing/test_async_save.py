"""A checkpoint that is written while training goes on is that of the step at which it was begun."""

from __future__ import annotations

import copy
import functools
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from forms import OFFLOAD, Form, Net, go
from ranks import run_ranks
from torch.multiprocessing import ProcessExitedException

from fairhuman.zero.host_copy import HostCopies

DECAY = 0.9
FORMS = [
    Form(1, 2, optimizer="AdamW8bit"),
    Form(2, 1, precision="bf16"),
    Form(2, 2, OFFLOAD, optimizer="AdamW8bit"),
    Form(2, 3, precision="fp16", optimizer="AdamW8bit"),
    Form(2, 3, optimizer="Adafactor"),
]


def start(form: Form) -> Any:
    from deepspeed.accelerator import get_accelerator

    from fairhuman.common.units import DTYPES
    from fairhuman.zero.engine import make_engine

    get_accelerator().is_fp16_supported = lambda: True
    torch.manual_seed(0)
    return make_engine(form.config(), Net().to(DTYPES[form.precision]))


def leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in a tree of states, and where; of DeepSpeed's objects, their attributes."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{place}.{key}")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{place}.{number}")
    elif type(tree).__module__.startswith("deepspeed") and not isinstance(tree, Enum):
        yield from leaves(vars(tree), f"{place}:{type(tree).__name__}")
    else:
        yield place, tree


def assert_same(found: Any, expected: Any) -> None:
    found, expected = dict(leaves(found)), dict(leaves(expected))
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        if torch.is_tensor(value):
            assert found[place].dtype == value.dtype, place
            assert found[place].shape == value.shape, place
            # ZeRO-3 pads with what the memory held, which may be NaN: a copy has the same bytes.
            assert torch.equal(raw(found[place]), raw(value)), place
        else:
            assert found[place] == value, place


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def contents(folder: Path) -> dict[str, Any]:
    """What a checkpoint's files hold, by their names."""
    from safetensors.torch import load_file

    readers: dict[str, Any] = {
        ".pt": functools.partial(torch.load, weights_only=False),
        ".safetensors": load_file,
    }
    return {
        path.relative_to(folder).as_posix(): readers.get(path.suffix, Path.read_bytes)(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def write_twice(form: Form, folder: Path) -> list[str | None]:
    """Write one checkpoint at once, and the same while two steps more are taken; and a second."""
    from fairhuman import checkpointing
    from fairhuman.checkpointing.manifest import Progress
    from fairhuman.zero.ema import EMA

    engine = start(form)
    ema = EMA(engine, DECAY)
    balancer = {"t": torch.ones(2), "n": 3}
    go(engine, range(3))
    ema.update(3)
    at_once = checkpointing.Saver(engine, folder / "at once", 9, ema=ema)
    saver = checkpointing.Saver(engine, folder / "meanwhile", 9, ema=ema)
    at_once.save(Progress(3, 18, 0), balancer)
    assert not at_once.in_flight
    saver.save(Progress(3, 18, 0), balancer, background=True)
    assert saver.in_flight
    assert not saver.crowded
    assert not list((folder / "meanwhile/checkpoints").glob("step-????????"))
    go(engine, range(3, 5))
    ema.update(4)
    at_once.save(Progress(5, 30, 0), balancer)
    saver.save(Progress(5, 30, 0), balancer, background=True)  # publishes the first
    assert (folder / "meanwhile/checkpoints/step-00000003").is_dir()
    go(engine, range(5, 6))
    saver.publish()
    assert not saver.in_flight
    assert not saver.writing
    return [
        checkpointing.unsound(path) or checkpointing.damage(path)
        for path in sorted(folder.glob("*/checkpoints/step-*"))
    ]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_holds_what_one_holds_that_training_waited_for(form: Form, tmp_path: Path) -> None:
    for problems in run_ranks(write_twice, form.ranks, form, tmp_path):
        assert problems == [None] * 4
    for step in (3, 5):
        expected, found = (
            contents(tmp_path / way / f"checkpoints/step-{step:08d}")
            for way in ("at once", "meanwhile")
        )
        assert len(expected) > 4
        assert_same(found, expected)
    assert not list(tmp_path.rglob("*.partial"))


def fail_meanwhile(folder: Path) -> tuple[str, list[str]]:
    """Begin a checkpoint that rank 1 cannot write, after one that is whole."""
    from fairhuman import checkpointing
    from fairhuman.checkpointing.manifest import Progress
    from fairhuman.common.errors import OutputError

    engine = start(Form(2, 2))
    go(engine, range(1))
    saver = checkpointing.Saver(engine, folder, 1)
    saver.save(Progress(1, 6, 0), background=True)
    saver.publish()
    write = engine.checkpoint_engine.save

    def fail(tree: Any, path: str) -> None:
        if torch.distributed.get_rank() == 1:
            Path(path).mkdir()  # in the way
        write(tree, path)

    engine.checkpoint_engine.save = fail
    saver.save(Progress(2, 12, 0), background=True)
    go(engine, range(1, 2))
    try:
        saver.publish()
    except OutputError as error:
        return str(error), [path.name for path in checkpointing.folders(folder)]
    return "", []


def test_what_cannot_be_written_ends_all_ranks_and_the_one_before_stays(tmp_path: Path) -> None:
    (first, kept), (second, _) = run_ranks(fail_meanwhile, 2, tmp_path)
    assert first == second
    assert "step-00000002: the checkpoint could not be written with" in first
    assert kept == ["step-00000001"]
    assert not list(tmp_path.rglob("*.partial"))


def die_meanwhile(folder: Path) -> None:
    """End by SIGKILL while the second checkpoint is half written."""
    from fairhuman import checkpointing
    from fairhuman.checkpointing.manifest import Progress

    engine = start(Form(1, 2))
    saver = checkpointing.Saver(engine, folder, 1)
    saver.save(Progress(1, 6, 0))
    write = engine.checkpoint_engine.save

    def slowly(tree: Any, path: str) -> None:
        write(tree, path)
        if "optim" in path:
            time.sleep(600)

    engine.checkpoint_engine.save = slowly
    saver.save(Progress(2, 12, 0), background=True)
    while not list(folder.glob("checkpoints/step-00000002.partial/deepspeed/*optim_states.pt")):
        time.sleep(0.01)
    assert saver.writing
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_during_the_writing_loses_that_checkpoint_alone(tmp_path: Path) -> None:
    from fairhuman import checkpointing

    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(die_meanwhile, 1, tmp_path)
    assert checkpointing.newest(tmp_path) == tmp_path / "checkpoints/step-00000001"
    assert checkpointing.damage(tmp_path / "checkpoints/step-00000001") is None


class Pair(NamedTuple):
    first: Any
    second: Any


def test_a_copy_is_equal_and_apart_in_every_kind_of_tree() -> None:
    wide = torch.arange(24.0).reshape(4, 6)
    tree: dict[str, Any] = {
        "bf16": torch.full((3, 5), 1.5, dtype=torch.bfloat16),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
        "turned": wide.T,
        "part": wide[1:3, ::2],
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "ordered": OrderedDict(b=torch.zeros(1), a=[1, (2.0, torch.ones(2))]),
        "pair": Pair(torch.ones(1), {"name": "x"}),
        "none": None,
    }
    copies = HostCopies()
    found = copies.copy("tree", tree)
    assert_same(found, tree)
    assert type(found["ordered"]) is OrderedDict
    assert type(found["pair"]) is Pair
    before = copy.deepcopy(found)
    with torch.no_grad():
        for _, value in leaves(tree):
            if torch.is_tensor(value) and value.numel():
                value.copy_(torch.zeros_like(value))
    tree["ordered"]["a"][0] = 5
    assert_same(found, before)
    assert all(not t.requires_grad for _, t in leaves(found) if torch.is_tensor(t))


def test_the_memory_of_a_copy_is_used_again_and_grows() -> None:
    copies = HostCopies()
    places = [
        copies.copy("a", {"x": torch.zeros(count)})["x"].data_ptr() for count in (1000, 1000, 10)
    ]
    assert len(set(places)) == 1
    assert copies.copy("b", {"x": torch.zeros(1000)})["x"].data_ptr() != places[0]
    large = copies.copy("a", {"x": torch.ones(10**6)})["x"]
    torch.testing.assert_close(large, torch.ones(10**6), rtol=0, atol=0)


def test_what_the_host_has_no_room_for_is_refused_before_anything_is_copied() -> None:
    copies = HostCopies()
    with pytest.raises(MemoryError):
        copies.copy("a", torch.empty(1 << 50, device="meta"))
