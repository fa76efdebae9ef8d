"""An error on one rank, of any kind and anywhere in a run, ends all ranks; none waits for ever."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from fairhuman import checkpointing
from fairhuman.common.distributed import PeerError, agreed, on_rank0
from fairhuman.common.errors import ConfigError, DataError, OutputError, UserError
from fairhuman.common.exit_code import exit_code
from fairhuman.common.run_folder import checkpoint_folder
from fairhuman.config import Config
from fairhuman.training.loop import train
from fairhuman.training.run import Run


class OddError(UserError):
    """One that cannot be pickled: its constructor takes something else than its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def _raise(error: Exception) -> None:
    raise error


def outcomes(work: Callable[[], Any]) -> tuple[str, str]:
    try:
        return "", repr(work())
    except Exception as error:
        return type(error).__name__, str(error)


def _unpicklable() -> Callable[[], None]:
    return lambda: None


def raised() -> dict[str, Any]:
    """Raise errors of each kind on one rank, in both ways to agree on them."""
    errors = {
        "config": ConfigError("lr = -1"),
        "data": DataError("a.jpg"),
        "odd": OddError("a", "b"),
        "disk": OSError(28, "No space left on device", "/out/a"),
        "nameless": OSError(5, "Input/output error"),
        "bug": KeyError("x"),
        "pickle": None,
    }
    found = {}
    for name, error in errors.items():
        work = functools.partial(_raise, error) if error else lambda: lambda: None
        found[name] = [outcomes(functools.partial(on_rank0, work))]
        if error:
            on_rank1 = work if dist.get_rank() == 1 else dist.get_rank
            found[name].append(outcomes(functools.partial(agreed, on_rank1)))
        dist.barrier()  # all are at the same place again
    return found


def test_every_kind_of_error_reaches_all_ranks() -> None:
    first, second = run_ranks(raised, 2)
    for name, kind, text in [
        ("config", "ConfigError", "lr = -1"),
        ("data", "DataError", "a.jpg"),
        ("odd", "UserError", "ab"),
        ("disk", "OutputError", "/out/a: No space left on device"),
    ]:
        assert first[name] == second[name] == [(kind, text)] * 2
    assert first["nameless"] == second["nameless"]
    assert first["nameless"][1] == ("OutputError", "rank 1: Input/output error")
    assert first["bug"] == [("KeyError", "'x'"), ("PeerError", "rank 1 failed: KeyError: 'x'")]
    assert second["bug"] == [("PeerError", "rank 0 failed: KeyError: 'x'"), ("KeyError", "'x'")]
    assert second["pickle"][0][0] == PeerError.__name__
    assert first["pickle"][0][0] not in ("", "PeerError")


def config_of(people: Path, model: Path, output: Path, **train_keys: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": str(model)},
            "data": {
                "root": str(people), "resolution": 64, "mask_margin": 4, "workers": 0,
                "validation": 6,
            },
            "optimizer": {"name": "SGD", "lr": 1e-4},
            "train": {
                "output_dir": str(output), "steps": 1, "batch_size": 1, "precision": "fp32",
                "checkpoint_every": 0, "resume": "auto", "sample_prompts": ["a man"], **train_keys,
            },
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )  # fmt: skip


def _in_the_way(run: Run, name: str) -> None:
    if run.first:
        path = run.output / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(exist_ok=True)
        path.touch() if not path.suffix else path.mkdir()
    dist.barrier()


def _limit(run: Run) -> None:
    """Let rank 0 write no file of more than 300 bytes, as a quota does (EFBIG)."""
    if run.first:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))


def _lose_image(run: Run) -> None:
    """Lose the held-out image that rank 1 measures first."""
    if run.first:
        Path(str(run.data.held_out[1].image)).unlink()
    dist.barrier()


def _lose_script(run: Run) -> None:
    """Let DeepSpeed's copy of its own script fail, which it makes on rank 0."""
    engine: Any = run.engine
    copy = engine._copy_recovery_script

    def fail(folder: str) -> None:
        (Path(folder) / "zero_to_fp32.py").mkdir()
        copy(folder)

    engine._copy_recovery_script = fail


def _lose_average(run: Run) -> None:
    """Let safetensors fail to write rank 1's part of the moving average."""
    assert run.ema
    state = run.ema.state
    folder = checkpoint_folder(run.output, 1)

    def fail() -> dict[str, torch.Tensor]:
        if not run.first:
            (folder.with_name(f"{folder.name}.partial") / "ema_rank_1.safetensors").mkdir()
        return state()

    run.ema.state = fail  # type: ignore[method-assign]


def _lose_data(run: Run) -> None:
    """Let rank 1's third step have no data."""
    if not run.first:
        run.batches = itertools.chain(
            itertools.islice(run.batches, 2), _raising(DataError("a.jpg: is gone"))
        )


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield


def _bug(run: Run) -> None:
    if run.log:
        run.log.names = ["none"]  # a KeyError when the step is logged


AVERAGED = {"ema_decay": 0.9}
SAMPLES = {"sample_every": 1, **AVERAGED}
RUNS: dict[str, tuple[dict[str, Any], Callable[[Run], None]]] = {
    "samples": (SAMPLES, functools.partial(_in_the_way, name="samples/step-00000001.png")),
    "final": (AVERAGED, functools.partial(_in_the_way, name="final")),
    "report": ({}, functools.partial(_in_the_way, name="report.html")),
    "quota": (AVERAGED, _limit),
    "script": ({}, _lose_script),
    "average": (AVERAGED, _lose_average),
    "bug": (AVERAGED, _bug),
    "data": ({"steps": 4, "checkpoint_every": 1}, _lose_data),
    "image": ({"validate_every": 1, **AVERAGED}, _lose_image),
}


def _train(config: Config, sabotage: Callable[[Run], None]) -> int:
    return int(train(config, prepare=sabotage))


def runs(people: str, model: str, folder: str, stage: int, names: list[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        keys, sabotage = RUNS[name]
        data = Path(folder) / f"people of {name}"
        if dist.get_rank() == 0:
            shutil.copytree(people, data)
        dist.barrier()
        config = config_of(data, Path(model), Path(folder) / name, **keys)
        config.deepspeed["zero_optimization"]["stage"] = stage
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = exit_code(functools.partial(_train, config, sabotage), "OUT")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        dist.barrier()  # all are at the same place again
        lines = said.getvalue().splitlines()  # and at each \r of the progress bar
        found[name] = (code, [line for line in lines if line.strip() and "%|" not in line])
    return found


@pytest.mark.slow
def test_a_run_that_fails_on_one_rank_ends_on_both_in_one_line(
    people: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The model, the report, the log, an image; under a moving average of the weights."""
    work = functools.partial(runs, str(people), str(tiny_model), str(tmp_path))
    ended = run_ranks(
        functools.partial(work, stage=2, names=[n for n in RUNS if n != "samples"]), 2
    )
    for name, words in {
        "final": "final: cannot be written: Not a directory; the training is done and its last",
        "report": "report.html: cannot be written: Is a directory",
        "quota": "File too large",
        "image": "there is no such file",
        "script": "step-00000001: the checkpoint could not be written with",
        "average": "step-00000001: the checkpoint could not be written with",
        "data": "a.jpg: is gone",
    }.items():
        (code, lines), (other_code, other_lines) = (of_rank[name] for of_rank in ended)
        assert (code, other_code) == (2, 2), (name, lines, other_lines)
        assert len(lines) == 1, (name, lines)
        assert words in lines[0], name
        assert other_lines == [], name
    (code, lines), (other_code, other_lines) = (of_rank["bug"] for of_rank in ended)
    assert (code, other_code) == (1, 1)
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "KeyError: 'loss/none'"
    assert other_lines == ["rank 0 failed: KeyError: 'loss/none'"]
    assert not list(tmp_path.rglob("*.partial"))
    # What was being written when the data failed is not lost.
    kept = checkpointing.folders(tmp_path / "data")
    assert [path.name for path in kept] == ["step-00000001"]
    assert checkpointing.damage(kept[0]) is None


@pytest.mark.slow
def test_samples_that_cannot_be_written_end_both_ranks_under_zero_3(
    people: Path, tiny_model: Path, tmp_path: Path
) -> None:
    work = functools.partial(runs, str(people), str(tiny_model), str(tmp_path), 3, ["samples"])
    first, second = (of_rank["samples"] for of_rank in run_ranks(work, 2))
    assert (first[0], second) == (2, (2, []))
    assert "step-00000001.png: cannot be written: Is a directory" in first[1][0]


def test_a_run_that_could_not_write_its_model_writes_it_on_the_next_start(
    people: Path, tiny_model: Path, tmp_path: Path
) -> None:
    def steps() -> list[int]:
        lines = (tmp_path / "final" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    work = functools.partial(runs, str(people), str(tiny_model), str(tmp_path))
    run_ranks(functools.partial(work, stage=2, names=["final"]), 1)
    assert steps() == [1]
    (tmp_path / "final" / "final").unlink()
    run_ranks(functools.partial(again, str(people), str(tiny_model), str(tmp_path / "final")), 1)
    assert steps() == [1]
    assert (tmp_path / "final" / "final" / "model_index.json").is_file()


def again(people: str, model: str, output: str) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    train(config_of(Path(people), Path(model), Path(output), **AVERAGED))
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())


def _touch_and_fail(path: Path) -> None:
    path.touch()
    raise RuntimeError("a bug")


def test_disk_errors_that_libraries_put_their_own_way_are_one_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from fairhuman.common.files import replacing

    path = tmp_path / "file"
    writers: list[Callable[[Path], Any]] = [
        lambda aside: torch.save(torch.zeros(9999), aside),
        lambda aside: save_file({"x": torch.zeros(9999)}, aside),
        lambda aside: aside.write_bytes(bytes(9999)),
    ]
    for write in writers:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        try:
            with pytest.raises(OutputError, match="file: cannot be written"), replacing(path) as a:
                write(a)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="a bug"), replacing(path) as aside:
        _touch_and_fail(aside)
    assert list(tmp_path.iterdir()) == []
