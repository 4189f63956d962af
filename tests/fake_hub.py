"""A stub of the Hub on this machine: repositories, commits, and the ways in which it refuses, for the real client."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """What the stub holds, and how it behaves.

    Attributes:
        address: Where it answers.
        repos: The files of each repository, by `models/owner/name`.
        private: Whether each repository is private.
        heads: The last commit of each repository.
        messages: The messages of all commits.
        refuse: A status that requests whose path contains a word are answered with.
        moves: Whether somebody else commits to every repository before a commit arrives.
        breaks: Whether the connection is closed in the middle of a commit.
    """

    def __init__(self) -> None:
        self.address = ""
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.heads: dict[str, int] = {}
        self.messages: list[str] = []
        self.refuse: tuple[str, int] | None = None
        self.moves = self.breaks = False

    def create(self, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Create a repository; 409 if it is there."""
        key = f"{payload.get('type', 'model')}s/{payload['organization']}/{payload['name']}"
        status = 409 if key in self.repos else 200
        self.repos.setdefault(key, {".gitattributes": b""})
        self.private.setdefault(key, payload.get("visibility") == "private" or payload.get("private") is True)
        self.heads.setdefault(key, 1)
        return status, {"url": f"{self.address}/{key.removeprefix('models/')}"}

    def info(self, key: str) -> tuple[int, dict[str, Any]]:
        """What is known of a repository."""
        if key not in self.repos:
            return 404, {"error": "Repository not found"}
        siblings = [{"rfilename": name} for name in self.repos[key]]
        return 200, {"id": key.partition("/")[2], "sha": f"{self.heads[key]:040x}", "siblings": siblings}

    def commit(self, key: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        """Take a commit; 412 if the branch has moved."""
        header = lines[0]["value"]
        self.heads[key] += self.moves
        if header.get("parentCommit") != f"{self.heads[key]:040x}":
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        self.repos[key] |= {name: base64.b64decode(content) for name, content in files.items()}
        self.heads[key] += 1
        self.messages.append(header["summary"])
        oid = f"{self.heads[key]:040x}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.address}/{key}/commit/{oid}"}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._file()
        else:
            self._answer(b"")

    def do_HEAD(self) -> None:
        self._file()

    def _file(self) -> None:
        """Answer with a file of a dataset."""
        key, _, name = self.path.lstrip("/").partition("/resolve/")
        commit, _, name = name.partition("/")
        data = self.hub.repos[key][name]
        self.send_response(200)
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Content-Length": len(data)}
        for header, value in headers.items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/")
        if self.hub.refuse is not None and self.hub.refuse[0] in path:
            self._send(self.hub.refuse[1], {"error": "refused"})
        elif path == "repos/create":
            self._send(*self.hub.create(json.loads(body)))
        elif path == "validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._send(200, {"files": files})
        elif path.endswith("/commit/main"):
            if self.hub.breaks:
                self.close_connection = True
                return
            lines = [json.loads(line) for line in body.splitlines()]
            self._send(*self.hub.commit(path.removesuffix("/commit/main"), lines))
        else:
            self._send(*self.hub.info(path.removesuffix("/revision/main")))

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A stub that answers."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
