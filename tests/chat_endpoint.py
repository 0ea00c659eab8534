"""A chat endpoint over real HTTP for tests of judges: it decides by a rule, and fails in every way on demand."""

import json
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

Decide = Callable[[str, str], str]
"""Given the response shown first and the one shown second: what the judge says."""


def longer(first: str, second: str) -> str:
    """The longer one is better."""
    if len(first) == len(second):
        return "They are alike.\n[[C]]"
    return "I count letters.\n" + ("[[A]]" if len(first) > len(second) else "[[B]]")


class ChatEndpoint:
    """What it was asked, and what it does next.

    Attributes:
        faults: Taken one per request, before any answer: an HTTP status, a status with headers and body, or one of
            "garbage", "no choices", "cut off", "hang up", "slow", "silent".
        seen: Bodies of the requests that were answered.
        keys: The Authorization of every request.
    """

    def __init__(self, decide: Decide) -> None:
        self.decide = decide
        self.faults: deque[Any] = deque()
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.requests = self.most_at_once = 0
        self.port = 0
        self.at_once = 0
        self.lock, self.ended = Lock(), Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        shown = body["messages"][-1]["content"]
        first, second = (
            re.search(rf"<response-{name}-(\w+)>\n(.*)\n</response-{name}-\1>", shown, re.DOTALL) for name in "AB"
        )
        assert first is not None
        assert second is not None
        text = self.decide(first[2], second[2])
        return {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: ChatEndpoint

    def do_POST(self) -> None:
        endpoint = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.requests += 1
            endpoint.at_once += 1
            endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
            endpoint.keys.append(self.headers["Authorization"])
            fault = endpoint.faults.popleft() if endpoint.faults else None
        try:
            self._reply(body, fault)
        finally:
            with endpoint.lock:
                endpoint.at_once -= 1

    def _reply(self, body: Any, fault: Any) -> None:
        if self.path != "/v1/chat/completions":
            fault = 404
        if fault is None:
            with self.endpoint.lock:
                self.endpoint.seen.append(body)
            self._send(200, json.dumps(self.endpoint.answer(body)).encode())
        elif isinstance(fault, int):
            self._send(fault, b'{"error": {"message": "no"}}')
        elif isinstance(fault, tuple):
            status, headers, data = fault
            self._send(status, data, headers)
        else:
            self._break(fault)

    def _break(self, fault: str) -> None:
        match fault:
            case "garbage":
                self._send(200, b"<html>the proxy says hello")
            case "no choices":
                self._send(200, b'{"choices": []}')
            case "cut off":
                self._send(200, b'{"choices": [{"message"', {"Content-Length": "4000"})
                self._hang_up()
            case "hang up":
                self._hang_up()
            case "slow":  # a byte now and then, so that no single read takes long
                self._send(200, b"", {"Content-Length": "4000"})
                while not self.endpoint.ended.wait(0.05):
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        break
                self._hang_up()
            case "silent":
                self.endpoint.ended.wait()
                self._hang_up()

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def chat_endpoint(decide: Decide = longer) -> Iterator[ChatEndpoint]:
    """One that listens on loopback for the length of a `with` block."""
    endpoint = ChatEndpoint(decide)
    handler = type("Handler", (_Handler,), {"endpoint": endpoint})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    endpoint.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
