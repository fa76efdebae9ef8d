"""Uploads what a run writes to a model repository on the Hugging Face hub, in the background."""

from __future__ import annotations

import functools
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.hub import PATIENCE_S, Named, no_answer
from fairhuman.config import Config
from fairhuman.training.checkpoint_push import folder_on_hub, push_checkpoint


def check_push(config: Config) -> None:
    """Check that the run may write to train.push_to_hub, which is made if it is not there.

    To be called on rank 0, at the start.

    Raises:
        ConfigError: there is no token, it may not write there, or the hub cannot be asked.
    """
    if config.train.push_to_hub is None:
        return
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import RepositoryNotFoundError

    named = Named("train.push_to_hub", config.train.push_to_hub)
    if HF_HUB_OFFLINE:
        named.refuse("the hub may not be asked (HF_HUB_OFFLINE is set); unset it, or remove this")
    if get_token() is None:
        named.refuse("there is no token for the hub: log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        try:
            api.model_info(named.value, timeout=PATIENCE_S)
        except RepositoryNotFoundError:
            api.create_repo(named.value, private=config.train.hub_private, exist_ok=True)
        api.auth_check(named.value, write=True)
    except Exception as error:  # those of the client's HTTP library depend on its version
        if _status(error) in (401, 403, 404):
            named.refuse(
                "the hub does not let this token write there: log in with one that may "
                f"(`hf auth login`, or HF_TOKEN), or name a repository of its owner "
                f"({_status(error)})"
            )
        named.refuse(f"the hub {no_answer(error)}; try again, or remove this")


class HubPush:
    """Uploads what was trained to the root of a repository, and checkpoints; one commit each.

    A folder that waits for an upload in progress is passed over once a newer one of its kind is
    there. What fails is said in one line; the run goes on.

    Args:
        name: the repository's, owner/name.
        say: prints a line, from any thread.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name = name
        self._say = say
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[Path, Callable[[], None]]] = {}
        """By kind of folder."""
        self._uploading: Path | None = None
        self._thread: threading.Thread | None = None

    @property
    def uploading(self) -> Path | None:
        """The folder that is being uploaded, which must stay."""
        return self._uploading

    def push(self, folder: Path, steps: int) -> None:
        """Have a folder uploaded, which must stay as it is until then.

        Args:
            folder: of what was trained, with its card.
            steps: that it was trained for.
        """
        self._add("trained", folder, functools.partial(_push_trained, steps=steps), ".")

    def push_checkpoint(self, folder: Path, steps: int) -> None:
        """Have a checkpoint uploaded; it must stay while it is `uploading`.

        Args:
            folder: OUT/checkpoints/step-NNNNNNNN.
            steps: after which it was written.
        """
        send = functools.partial(push_checkpoint, steps=steps)
        self._add("checkpoint", folder, send, folder_on_hub(folder))

    def is_to_come(self, folder: Path) -> bool:
        """Return whether a folder is being uploaded or waits for it."""
        with self._lock:
            return folder in (self._uploading, *(waiting for waiting, _ in self._waiting.values()))

    def _add(self, kind: str, folder: Path, send: Callable[..., Any], where: str) -> None:
        with self._lock:
            self._waiting[kind] = folder, functools.partial(self._upload, folder, send, where)
            if self._thread is None:
                # A daemon: a run that is stopped does not wait for it.
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def wait(self, stopped: Callable[[], object]) -> None:
        """Wait until all is uploaded, or until `stopped` returns something true."""
        while (thread := self._thread) is not None and not stopped():
            thread.join(0.2)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._uploading = None
                if not self._waiting:
                    self._thread = None
                    return
                self._uploading, work = self._waiting.pop(next(iter(self._waiting)))
            work()

    def _upload(self, folder: Path, send: Callable[..., Any], where: str) -> None:
        from huggingface_hub import HfApi

        try:
            done = send(HfApi(), self.name, folder)
        except Exception as error:  # whatever it is, it must not end the run
            if not folder.is_dir():
                return  # the best so far, which a better one has replaced and which comes next
            why = error if isinstance(error, UserError) else f"the hub {no_answer(error)}"
            self._say(
                f"{folder} was not uploaded to {self.name}: {why}; upload it with: "
                f"{upload_command(self.name, folder, where)}"
            )
        else:
            self._say(f"uploaded {folder} to {done.repo_url}")


def upload_command(name: str, folder: Path, where: str = ".") -> str:
    """Return the command line that uploads a folder to a repository."""
    return shlex.join(["hf", "upload", name, str(folder), where])


def _push_trained(api: Any, name: str, folder: Path, steps: int) -> Any:
    # Asked first, for an upload that finds no hub tries again for half a minute.
    api.model_info(name, timeout=PATIENCE_S)
    return api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{steps} steps")


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
