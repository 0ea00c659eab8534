"""The console as seen over HTTP, and rows as OpenAI's users have them."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Site:
    url: str
    token: str

    def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: str | bytes | None = None
    ) -> Answer:
        """One request, as the operator unless `headers` says who else."""
        with self.sent(method, path, headers=headers, body=body) as response:
            return Answer(response.status, response.headers, response.read().decode())

    @contextmanager
    def sent(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: str | bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """A request whose answer is read by and by."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            by_token = {"Authorization": f"Bearer {self.token}"}
            connection.request(method, path, body=body, headers=by_token if headers is None else dict(headers))
            yield connection.getresponse()
        finally:
            connection.close()

    def login_path(self) -> str:
        return str(self.ask("POST", "/api/login-codes").json()["path"])

    def cookie(self) -> str:
        """Of a browser that has just logged in."""
        let_in = self.ask("GET", self.login_path(), headers={})
        return let_in.headers["set-cookie"].partition(";")[0]


def rows(count: int) -> list[dict[str, Any]]:
    """Preference pairs in OpenAI's form."""
    words = ["superb", "good", "weak", "awful", "charming", "dull"]
    return [
        {
            "input": {"messages": [{"role": "user", "content": f"a 1980s drama . the {noun}"}]},
            "preferred_output": [{"role": "assistant", "content": f"is {words[number % 2]} ."}],
            "non_preferred_output": [{"role": "assistant", "content": f"is {words[2 + number % 4]} ."}],
        }
        for number in range(count)
        for noun in ("plot", "cast")
    ][:count]
