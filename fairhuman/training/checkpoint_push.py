"""Uploads a checkpoint to the hub, in place of those that the run has uploaded before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from fairhuman.common.files import write_text
from fairhuman.common.hub import PATIENCE_S
from fairhuman.common.json_text import Name, parse_as
from fairhuman.common.run_folder import CHECKPOINTS, PUSHED
from fairhuman.common.text_files import read_limited

_LARGEST = 1 << 20
_Step = Annotated[str, Field(pattern=rf"^{CHECKPOINTS}/step-\d{{8}}$")]
_KIND: TypeAdapter[dict[Name, list[_Step]]] = TypeAdapter(dict[Name, list[_Step]])


def folder_on_hub(folder: Path) -> str:
    """Return where a repository keeps a checkpoint of a run."""
    return f"{CHECKPOINTS}/{folder.name}"


def push_checkpoint(api: Any, name: str, folder: Path, steps: int) -> Any:
    """Upload a checkpoint and remove what the run has uploaded before, in one commit.

    Other files of the repository stay as they are, also checkpoints of other runs: what is this
    run's is kept in OUT/pushed_checkpoints.json.

    Args:
        api: the hub's client.
        name: of the repository, owner/name.
        folder: OUT/checkpoints/step-NNNNNNNN.
        steps: after which it was written.

    Returns:
        What the client tells of the commit.

    Raises:
        UserError: pushed_checkpoints.json cannot be read or written. What the client raises passes
            as it is.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    record, where = folder.parent.parent / PUSHED, folder_on_hub(folder)
    known = parse_as(_KIND, read_limited(record, _LARGEST), record) if record.exists() else {}
    ours = {*known.get(name, ()), where}
    # Asked first, for an upload that finds no hub tries again for half a minute.
    there = [file.rfilename for file in api.model_info(name, timeout=PATIENCE_S).siblings or ()]
    new = {
        f"{where}/{path.relative_to(folder).as_posix()}": path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    old = [file for file in there if file not in new and _checkpoint_of(file) in ours]
    # Before it is there: what a run that is killed meanwhile has uploaded is its own all the same.
    _write(record, {**known, name: sorted(ours)})
    done = api.create_commit(
        name,
        [
            *(CommitOperationAdd(file, path) for file, path in new.items()),
            *(CommitOperationDelete(file) for file in old),
        ],
        commit_message=f"checkpoint of {steps} steps",
    )
    _write(record, {**known, name: [where]})
    return done


def _checkpoint_of(file: str) -> str:
    return "/".join(file.split("/")[:2])


def _write(record: Path, known: dict[str, list[str]]) -> None:
    write_text(record, json.dumps(known, indent=2) + "\n")
