"""A server on 127.0.0.1 that answers huggingface_hub's client as the hub does, from memory."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

WRITER = "hf_writer"
READER = "hf_reader"
"""Tokens; what neither of them is, is not known."""


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Their messages."""
    tags: dict[str, Repository] = field(default_factory=dict)
    """Other revisions, by their names."""

    def at(self, revision: str | None) -> Repository | None:
        """Return what a revision holds; None: there is none of that name."""
        if revision in (None, "main", self.sha):
            return self
        return next((tag for name, tag in self.tags.items() if revision in (name, tag.sha)), None)

    @property
    def sha(self) -> str:
        told = sorted((name, _git_oid(content)) for name, content in self.files.items())
        return hashlib.sha1(repr(told).encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By kind and name, such as models/me/people."""
    asked: list[str] = field(default_factory=list)
    """Methods and paths."""
    broken: str = ""
    """A part of a path; what is asked there is answered with 500."""
    commits_may_come: threading.Event = field(default_factory=threading.Event)
    """Set at first; a commit waits for it."""

    def __post_init__(self) -> None:
        self.commits_may_come.set()


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """Serve a hub with no repository."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path | None = None) -> None:
    """Have huggingface_hub, which reads its environment on import, ask the server at an address."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    # The client behind the library's functions is made on import.
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
    if cache:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        quoted = urlsplit(self.path).path
        path = unquote(quoted)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.broken and self.hub.broken in path:
            return self._send(500, {"error": "out of order"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([^/]+))?(?:/(.*))?", path)
        if found:
            kind, name, what, rest = found.groups()
            return self._repository(f"{kind}/{name}", what, rest, body)
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", quoted)
        if found:
            kind, *rest = found.groups()
            name, revision, file = map(unquote, rest)
            return self._file(f"{kind or 'models/'}{name}", revision, file)
        return self._send(404, {})

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _create(self, asked: dict[str, Any]) -> None:
        if self._token() != WRITER:
            return self._send(403, {"error": "You don't have the rights to create a model"})
        name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo"})
        self.hub.repositories[name] = Repository(private=asked["visibility"] == "private")
        return self._send(200, {"url": f"{self.hub.address}/{name.partition('/')[2]}"})

    def _repository(self, name: str, what: str | None, rest: str | None, body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._send(401, {}, {"X-Error-Code": "RepoNotFound"})
        if what in (None, "revision"):
            there = repository.at(rest)
            if there is None:
                return self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
            files = [{"rfilename": file} for file in there.files]
            told = {"id": name.partition("/")[2], "sha": there.sha, "siblings": files}
            return self._send(200, {**told, "private": repository.private})
        if what == "tree" and (there := repository.at(rest)):
            return self._send(200, [self._entry(*file) for file in there.files.items()])
        if what == "auth-check":
            return self._send(200 if self._token() == WRITER else 403, {"error": "no rights"})
        if self._token() != WRITER:
            return self._send(403, {"error": "no rights"})
        if what == "preupload":
            asked = json.loads(body)["files"]
            return self._send(200, {"files": [self._upload(repository, file) for file in asked]})
        if what == "commit":
            return self._commit(repository, [json.loads(line) for line in body.splitlines()])
        return self._send(404, {})

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}

    def _upload(self, repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
        content = repository.files.get(file["path"])
        oid = None if content is None else _git_oid(content)
        told = {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
        return told if oid is None else {**told, "oid": oid}

    def _commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        self.hub.commits_may_come.wait(60)
        for line in lines:
            if line["key"] == "header":
                repository.commits.append(line["value"]["summary"])
            elif line["key"] == "file":
                file = line["value"]
                repository.files[file["path"]] = base64.b64decode(file["content"])
            elif line["key"] == "deletedFile":
                del repository.files[line["value"]["path"]]
        url = f"{self.hub.address}/x/y/commit/{repository.sha}"
        self._send(200, {"commitUrl": url, "commitOid": repository.sha})

    def _file(self, name: str, revision: str, file: str) -> None:
        found = self.hub.repositories.get(name)
        repository = found.at(revision) if found else None
        content = repository.files.get(file) if repository else None
        if repository is None or content is None:
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
        etag = f'"{_git_oid(content)}"'
        headers = {"X-Repo-Commit": repository.sha, "ETag": etag}
        return self._send(200, content, headers)

    def _send(self, status: int, told: Any, headers: dict[str, str] | None = None) -> None:
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if isinstance(told, dict) and "error" in told:
            self.send_header("X-Error-Message", told["error"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
