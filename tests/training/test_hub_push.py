"""What a run uploads to the hub, with the hub's own client and a server that answers like it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest
import torch
import yaml
from fake_hub import READER, WRITER, Hub, Repository, fake_hub, use_hub
from runs import command, write_config
from safetensors.torch import load_file

from fairhuman import checkpointing
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config, load_config
from fairhuman.training.hub_push import HubPush, check_push

SCRIPT = Path(launch.__file__).with_name("train_on_hub.py")
NAME = "me/people"
KEY = f"models/{NAME}"
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub() as found:
        use_hub(monkeypatch, found.address)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield found


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = write_config(tmp_path, tmp_path, tmp_path)
    return load_config(file, [f"train.push_to_hub={NAME}"])


def refusal(config: Config) -> str:
    with pytest.raises(ConfigError) as error:
        check_push(config)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"train.push_to_hub = '{NAME}': ")
    return line


def test_a_repository_is_made_private_and_one_that_is_there_is_left(
    hub: Hub, config: Config
) -> None:
    check_push(config)
    assert hub.repositories[KEY].private
    hub.repositories[KEY] = Repository(private=False)
    check_push(config)
    assert not hub.repositories[KEY].private


def test_what_may_not_be_written_is_refused(
    hub: Hub, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "does not let this token write there" in refusal(config)
    hub.repositories[KEY] = Repository()
    assert "does not let this token write there" in refusal(config)
    hub.broken = "auth-check"
    assert "the hub answers with 500: out of order" in refusal(config)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
    assert "hf auth login" in refusal(config)


def test_without_a_network_it_is_refused_at_once(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(config)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    assert "cannot be reached" in refusal(config)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", ["people", "me/people/x", "me/pe ople", "../people"])
def test_what_cannot_be_a_repository_is_refused_by_the_config(tmp_path: Path, name: str) -> None:
    file = write_config(tmp_path, tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"push_to_hub = .*owner/name"):
        load_config(file, [f"train.push_to_hub={name}"])


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "weights").write_text(text)
    return path


def test_the_newest_is_uploaded_and_what_is_there_is_not_again(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[KEY] = Repository()
    said: list[str] = []
    push = HubPush(NAME, said.append)
    folders = [folder_of(tmp_path / str(step), str(step)) for step in (1, 2, 3)]
    for step, folder in enumerate(folders, start=1):
        push.push(folder, step)
    push.wait(lambda: False)
    repository = hub.repositories[KEY]
    assert repository.files["weights"] == b"3"
    assert repository.commits[-1] == "3 steps"
    assert len(repository.commits) == len(said)
    assert "3 steps" in repository.commits
    before = list(repository.commits)
    push.push(folders[2], 3)
    push.wait(lambda: False)
    assert repository.commits == before
    assert all(line.startswith("uploaded ") for line in said)


def checkpoint(output: Path, step: int) -> Path:
    folder = output / "checkpoints" / f"step-{step:08d}"
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "manifest.json").write_text(f"{step}")
    (folder / "deepspeed/states.pt").write_text(f"states {step}")
    (folder / f"of_{step}.txt").write_text("")
    return folder


def pushed(folder: Path) -> dict[str, bytes]:
    """Return the files that a repository has of a checkpoint."""
    files = (path for path in folder.rglob("*") if path.is_file())
    output = folder.parent.parent
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


def test_a_checkpoint_takes_the_place_of_those_of_its_run_alone(hub: Hub, tmp_path: Path) -> None:
    others = {"README.md": b"", "checkpoints/step-00000005/x": b"", "checkpoints/notes": b""}
    repository = hub.repositories[KEY] = Repository(files=dict(others))
    said: list[str] = []
    folders = [checkpoint(tmp_path, step) for step in (10, 20, 30)]
    push = HubPush(NAME, said.append)
    for step, folder in zip((10, 20, 30), folders, strict=True):
        push.push_checkpoint(folder, step)
        push.wait(lambda: False)
        assert repository.files == others | pushed(folder)
        if step == 20:
            push = HubPush(NAME, said.append)  # of the run, started again
    (folders[2] / "of_30.txt").unlink()  # the same step, by other ranks
    push.push_checkpoint(folders[2], 30)
    push.wait(lambda: False)
    assert repository.files == others | pushed(folders[2])
    assert repository.commits[:3] == [f"checkpoint of {step} steps" for step in (10, 20, 30)]
    assert len(said) == len(repository.commits) == 4
    (tmp_path / "pushed_checkpoints.json").write_text("[]")
    push.push_checkpoint(folders[0], 10)
    push.wait(lambda: False)
    assert f"{tmp_path / 'pushed_checkpoints.json'}: " in said[-1]
    where = "checkpoints/step-00000010"
    assert said[-1].endswith(f"upload it with: hf upload {NAME} {folders[0]} {where}")
    assert repository.files == others | pushed(folders[2])


def test_a_checkpoint_stays_on_the_disk_while_it_is_uploaded(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories[KEY] = Repository()
    said: list[str] = []
    push = HubPush(NAME, said.append)
    hub.commits_may_come.clear()
    first = checkpoint(tmp_path, 10)
    push.push_checkpoint(first, 10)
    while push.uploading is None:
        time.sleep(0.01)
    push.push(folder_of(tmp_path / "x", "20"), 20)  # does not displace a checkpoint
    for step in (20, 30):
        last = checkpoint(tmp_path, step)
        push.push_checkpoint(last, step)
        checkpointing.rotate(last.parent, 1, None, step, push.uploading)
    assert sorted(last.parent.iterdir()) == [first, last]
    assert push.is_to_come(last)
    hub.commits_may_come.set()
    push.wait(lambda: False)
    assert not push.is_to_come(last)
    assert push.uploading is None
    assert repository.files == pushed(last) | {"weights": b"20"}
    assert sorted(repository.commits) == [
        "20 steps", "checkpoint of 10 steps", "checkpoint of 30 steps",
    ]  # fmt: skip
    assert all(line.startswith("uploaded ") for line in said)


def test_checkpoints_need_a_repository(tmp_path: Path) -> None:
    file = write_config(tmp_path, tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"push_checkpoints = True: train.push_to_hub names no"):
        load_config(file, ["train.push_checkpoints=true"])


def test_a_failed_upload_is_one_line_with_the_command_that_repeats_it(
    hub: Hub, tmp_path: Path
) -> None:
    said: list[str] = []
    push = HubPush(NAME, said.append)
    folder = folder_of(tmp_path / "a b", "1")
    push.push(folder, 1)
    push.wait(lambda: False)
    (line,) = said
    assert line.endswith(f"upload it with: hf upload {NAME} '{folder}' .")
    push.push(tmp_path / "gone", 1)  # a best export that another has replaced
    push.wait(lambda: False)
    assert said == [line]


def test_a_wait_ends_when_the_run_is_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[KEY] = Repository()
    push = HubPush(NAME, lambda line: None)
    hub.broken = "preupload"  # tries again for half a minute
    push.push(folder_of(tmp_path / "x", "1"), 1)
    began = time.monotonic()
    push.wait(lambda: time.monotonic() - began > 0.5)
    assert time.monotonic() - began < 5


def test_a_run_uploads_its_exports_and_its_end(
    hub: Hub, tiny_model: Path, people: Path, tmp_path: Path
) -> None:
    file, output = write_config(tmp_path, tiny_model, people), tmp_path / "out"
    words = command(file, output, [
        "model.method=lora", "model.lora.rank=2", f"train.push_to_hub={NAME}", "train.steps=3",
        "train.export_every=2", "train.validate_every=0", "train.checkpoint_every=1",
        "train.keep_checkpoints=1", "train.push_checkpoints=true",
    ])  # fmt: skip
    done = launch.run(words, 2, script=SCRIPT, HF_ENDPOINT=hub.address, HF_TOKEN=WRITER)
    assert done.returncode == 0, done.stderr[-4000:]
    repository = hub.repositories[KEY]
    assert repository.private
    (last,) = output.glob("checkpoints/step-*")
    assert repository.files.keys() == {"README.md", FILE, *pushed(last)}
    assert repository.files.items() >= pushed(last).items()
    assert repository.files[FILE] == (output / "final" / FILE).read_bytes()
    card = repository.files["README.md"].decode()
    assert f'load_lora_weights("{NAME}")' in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "diffusers"
    assert repository.commits[-1] == "3 steps"
    assert f"uploaded {output / 'final'} to {hub.address}/" in done.stdout
    assert WRITER not in done.printed + (output / "config.yaml").read_text() + card


@pytest.mark.nightly  # starts the trainer once more
def test_a_run_ends_well_without_its_hub(
    hub: Hub, tiny_model: Path, people: Path, tmp_path: Path
) -> None:
    file, output = write_config(tmp_path, tiny_model, people), tmp_path / "out"
    hub.repositories[KEY] = Repository()
    hub.broken = "validate-yaml"
    words = command(file, output, [
        "model.method=lora", "model.lora.rank=2", f"train.push_to_hub={NAME}", "train.steps=1",
        "train.validate_every=0", "train.checkpoint_every=0", "optimizer.warmup_steps=0",
    ])  # fmt: skip
    done = launch.run(words, 1, script=SCRIPT, HF_ENDPOINT=hub.address, HF_TOKEN=WRITER)
    assert done.returncode == 0, done.stderr[-4000:]
    final = output / "final"
    assert f"upload it with: hf upload {NAME} {final} ." in done.stdout
    assert (final / FILE).is_file()
    assert not hub.repositories[KEY].files


@pytest.mark.nightly  # trains three times
def test_a_run_continues_on_another_machine_from_what_it_pushed(
    hub: Hub, tiny_model: Path, people: Path, tmp_path: Path
) -> None:
    file = write_config(tmp_path, tiny_model, people)
    same = ["model.method=lora", "model.lora.rank=2", "train.validate_every=0"]
    same += ["optimizer.warmup_steps=0"]
    push = [f"train.push_to_hub={NAME}", "train.push_checkpoints=true"]
    resume = [f"train.resume=hf://{NAME}", "train.checkpoint_every=0"]
    for folder, more in (
        ("straight", ["train.steps=4"]),
        ("first", ["train.steps=2", *push]),
        ("then", ["train.steps=4", *resume]),
    ):
        words = command(file, tmp_path / folder, [*same, *more])
        done = launch.run(words, 2, script=SCRIPT, HF_ENDPOINT=hub.address, HF_TOKEN=WRITER)
        assert done.returncode == 0, done.stderr[-4000:]
    assert f"step-00000002 was downloaded from hf://{NAME}" in done.stdout
    straight, then = (load_file(tmp_path / run / "final" / FILE) for run in ("straight", "then"))
    assert then.keys() == straight.keys()
    assert all(torch.equal(then[name], straight[name]) for name in straight)


def test_a_mistake_of_the_config_is_told_before_a_checkpoint_is_downloaded(
    hub: Hub, people: Path, tmp_path: Path
) -> None:
    file, output = write_config(tmp_path, tmp_path / "nowhere", people), tmp_path / "out"
    manifest = {"checkpoints/step-00000003/manifest.json": b"{}"}
    hub.repositories[KEY] = Repository(files=manifest)
    words = command(file, output, [f"train.resume=hf://{NAME}"])
    done = launch.run(words, 1, script=SCRIPT, HF_ENDPOINT=hub.address)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"model.pretrained = '{tmp_path / 'nowhere'}'")
    assert not [path for path in hub.asked if KEY in path or NAME in path]
