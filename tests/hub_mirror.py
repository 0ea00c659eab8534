"""A Hugging Face hub on loopback, as far as imports ask one."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
_NAMES = ("main", "v1", "refs/pr/1")
REVISIONS = (*_NAMES, COMMIT)
"""All that name the commit."""


@contextmanager
def hub(
    files: Mapping[str, bytes],
    *,
    repo: str = "somebody/model",
    kind: Literal["models", "datasets"] = "models",
    gate: str = "",
    commit: str = COMMIT,
) -> Iterator[str]:
    """A hub with one repository at one commit; gives its URL.

    With a `gate` the files are shown to those alone who bring that token; what files there are, to all.
    """
    place = repo if kind == "models" else f"datasets/{repo}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            name = path.removeprefix(f"/{place}/resolve/{commit}/")
            if path in (f"/api/{kind}/{repo}/revision/{revision}" for revision in (*_NAMES, commit)):
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())
            elif path.startswith(f"/api/{kind}/{repo}/tree/{commit}"):
                under = path.removeprefix(f"/api/{kind}/{repo}/tree/{commit}").strip("/")
                inside = [name for name in files if name.startswith(f"{under}/" if under else "")]
                folders = {str(PurePosixPath(name).parent) for name in inside} - {".", under}
                tree = [*map(self.file, inside), *map(self.folder, sorted(folders))]
                self.answer(json.dumps(tree).encode())
            elif (
                gate
                and (name in files or path.endswith("/auth-check"))
                and self.headers["Authorization"] != f"Bearer {gate}"
            ):
                self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
            elif path == f"/api/{kind}/{repo}/auth-check":
                self.answer(b"{}")
            elif name in files:
                self.answer(files[name])
            elif path.startswith(f"/{place}/resolve/{commit}/"):
                self.refuse(404, "EntryNotFound")
            elif "private" in path:
                self.refuse(403)
            else:
                self.refuse(404, "RepoNotFound")

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:
            """Which of some paths there are, files and folders."""
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.path != f"/api/{kind}/{repo}/paths-info/{commit}":
                self.refuse(404, "RepoNotFound")
                return
            paths = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
            folders = [path for path in paths if any(name.startswith(f"{path}/") for name in files)]
            found = [*map(self.file, set(paths) & set(files)), *map(self.folder, folders)]
            self.answer(json.dumps(found).encode())

        def file(self, name: str) -> dict[str, Any]:
            return {"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40}

        def folder(self, name: str) -> dict[str, Any]:
            return {"type": "directory", "path": name, "oid": "0" * 40}

        def answer(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def refuse(self, status: int, code: str = "") -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
