"""A Hugging Face hub on loopback, as far as imports ask one."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@contextmanager
def hub(
    files: Mapping[str, bytes], *, repo: str = "somebody/model", kind: Literal["models", "datasets"] = "models"
) -> Iterator[str]:
    """A hub with one repository at one commit; gives its URL."""
    place = repo if kind == "models" else f"datasets/{repo}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            name = path.removeprefix(f"/{place}/resolve/{COMMIT}/")
            if path == f"/api/{kind}/{repo}/revision/{COMMIT}":
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith(f"/api/{kind}/{repo}/tree/{COMMIT}"):
                tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files]
                self.answer(json.dumps(tree).encode())
            elif name in files:
                self.answer(files[name])
            elif "private" in path:
                self.refuse(403)
            else:
                self.refuse(404, "RepoNotFound")

        do_HEAD = do_GET  # noqa: N815

        def answer(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
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
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
