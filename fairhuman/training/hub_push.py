"""Uploads what a run writes to a model repository on the Hugging Face hub, in the background."""

from __future__ import annotations

import functools
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

from fairhuman.common.hub import PATIENCE_S, Named, no_answer
from fairhuman.config import Config


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
    """Uploads folders to the root of a repository, one commit each, the newest first.

    A folder that waits for an upload in progress is passed over once a newer one is there. What
    fails is said in one line; the run goes on.

    Args:
        name: the repository's, owner/name.
        say: prints a line, from any thread.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name = name
        self._say = say
        self._lock = threading.Lock()
        self._waiting: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None

    def push(self, folder: Path, steps: int) -> None:
        """Have a folder uploaded, which must stay as it is until then.

        Args:
            folder: of what was trained, with its card.
            steps: that it was trained for.
        """
        with self._lock:
            self._waiting = functools.partial(self._upload, folder, steps)
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
                work, self._waiting = self._waiting, None
                if work is None:
                    self._thread = None
                    return
            work()

    def _upload(self, folder: Path, steps: int) -> None:
        from huggingface_hub import HfApi

        api = HfApi()
        try:
            # Asked first, for an upload that finds no hub tries again for half a minute.
            api.model_info(self.name, timeout=PATIENCE_S)
            message = f"{steps} steps"
            done = api.upload_folder(repo_id=self.name, folder_path=folder, commit_message=message)
        except Exception as error:  # whatever it is, it must not end the run
            if not folder.is_dir():
                return  # the best so far, which a better one has replaced and which comes next
            self._say(
                f"{folder} was not uploaded to {self.name}: the hub {no_answer(error)}; "
                f"upload it with: {upload_command(self.name, folder)}"
            )
        else:
            self._say(f"uploaded {folder} to {done.repo_url}")


def upload_command(name: str, folder: Path) -> str:
    """Return the command line that uploads a folder to a repository's root."""
    return shlex.join(["hf", "upload", name, str(folder), "."])


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
