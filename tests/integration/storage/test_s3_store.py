"""S3Store against a real server, with a proxy between them that fails on demand."""

import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from madpo.config import StoreSettings
from madpo.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    MadpoError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from madpo.storage.local import LocalStore
from madpo.storage.open import check_conditional_writes, open_store
from madpo.storage.s3 import S3Store
from madpo.storage.s3_errors import REPEATED

PAGES: dict[str, tuple[int, dict[str, str], bytes]] = {
    "a page": (200, {"Content-Type": "text/html"}, b"<html><body>Log in<br></body></html>"),
    "a page of another status": (404, {"Content-Type": "text/html"}, b"<html>no such page"),
    "no text": (400, {"Content-Type": "application/xml"}, b"\xff\xfe\x00"),
    "half a document": (403, {"Content-Type": "application/xml"}, b"<Error><Code>Acc"),
    "another document": (200, {"Content-Type": "application/xml"}, b"<html><body>Welcome</body></html>"),
}
"""What answers in the place of a server: a login, a balancer, a damaged proxy."""


class Proxy(ThreadingHTTPServer):
    """Forwards requests; `faults` are used up one per request that they name: (method, kind)."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.faults: list[tuple[str, str]] = []
        self.injected: list[str] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Forwarder)

    def next_fault(self, method: str) -> str:
        with self._lock:
            for fault in self.faults:
                if fault[0] == method:
                    self.faults.remove(fault)
                    self.injected.append(fault[1])
                    return fault[1]
        return ""


class Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault(self.command)
        if fault == "error":
            fault = "503 SlowDown"
        if fault[:3].isdigit():
            status, _, code = fault.partition(" ")
            self.reply(int(status), {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
            return
        if fault in PAGES:
            self.reply(*PAGES[fault])
            return
        if fault == "wait long":
            self.reply(503, {"Retry-After": "3600"}, b"")
            return
        upstream = http.client.HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, body=body, headers=dict(self.headers))
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        if fault == "lose reply":
            self.close_connection = True
            return
        if fault == "fail in the reply":
            data = b"<Error><Code>InternalError</Code><Message>Please try again.</Message></Error>"
            self.reply(200, {"Content-Type": "application/xml"}, data)
            return
        headers = {k: v for k, v in response.getheaders() if k.lower() not in ("content-length", "transfer-encoding")}
        self.reply(
            response.status, headers, data, cut=fault == "cut reply", length=response.getheader("Content-Length")
        )

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

    def reply(
        self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False, length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def proxy(s3_settings: StoreSettings) -> Iterator[Proxy]:
    server = Proxy((s3_settings.s3_endpoint or "").removeprefix("http://"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(s3_settings: StoreSettings) -> StoreSettings:
    return s3_settings.model_copy(update={"store_url": f"{s3_settings.store_url}/{uuid4().hex}"})


@pytest.fixture
def proxied(settings: StoreSettings, proxy: Proxy) -> S3Store:
    store = open_store(settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{proxy.server_port}"}))
    assert isinstance(store, S3Store)
    return store


@pytest.mark.promise("D3")
def test_a_creation_whose_reply_was_lost_still_succeeds(proxied: S3Store, proxy: Proxy) -> None:
    proxy.faults = [("PUT", "lose reply")]

    assert proxied.put_if_absent("a", b"mine")

    assert proxy.injected == ["lose reply"]
    assert not proxied.put_if_absent("a", b"other")
    assert proxied.get("a") == b"mine"


@pytest.mark.promise("D3")
def test_a_replacement_whose_reply_was_lost_still_succeeds(proxied: S3Store, proxy: Proxy) -> None:
    etag = proxied.put("a", b"1")
    proxy.faults = [("PUT", "lose reply")]

    second = proxied.put_if_match("a", b"2", etag)

    assert proxy.injected == ["lose reply"]
    assert proxied.get_with_etag("a") == (b"2", second)


@pytest.mark.parametrize(
    ("method", "action"),
    [
        ("PUT", lambda store, path: store.put("b", b"")),
        ("GET", lambda store, path: store.get("a")),
        ("GET", lambda store, path: store.get_file("a", path)),
        ("GET", lambda store, path: list(store.list("a"))),
        ("HEAD", lambda store, path: store.head("a")),
        ("DELETE", lambda store, path: store.delete("a")),
    ],
)
@pytest.mark.parametrize("fault", ["error", "lose reply"])
def test_requests_are_repeated_after_faults(
    proxied: S3Store, proxy: Proxy, tmp_path: Path, method: str, action: Callable[[S3Store, Path], Any], fault: str
) -> None:
    proxied.put("a", b"data")
    proxy.faults = [(method, fault)] * 2

    action(proxied, tmp_path / "copy")

    assert proxy.injected == [fault] * 2


@pytest.mark.promise("D3")
def test_a_download_cut_short_starts_again(proxied: S3Store, proxy: Proxy, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    proxied.put("a", data)
    proxy.faults = [("GET", "cut reply")] * 2

    proxied.get_file("a", tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == data
    assert proxy.injected == ["cut reply"] * 2


def test_an_upload_in_parts_survives_lost_replies(proxied: S3Store, proxy: Proxy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789abcdef" * (33 << 16))
    # The first POST begins the upload, the second ends it.
    proxy.faults = [("POST", "lose reply"), ("PUT", "error"), ("POST", "lose reply")]

    proxied.put_file("big", source)

    proxied.get_file("big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert len(proxy.injected) == 3


def test_a_stream_cut_short_is_unavailable_not_short(proxied: S3Store, proxy: Proxy) -> None:
    proxied.put("a", b"0123456789" * 100_000)
    proxy.faults = [("GET", "cut reply")]

    with pytest.raises(UnavailableError), proxied.open_read("a") as stream:
        stream.read()


def test_lasting_errors_are_unavailable(settings: StoreSettings, proxy: Proxy) -> None:
    store = make_store(settings, endpoint=f"127.0.0.1:{proxy.server_port}", retries=1)
    proxy.faults = [("GET", "error")] * 2

    with pytest.raises(UnavailableError, match=r"object store http://127\.0\.0\.1:\d+ fails with 503 SlowDown$"):
        store.get("a")


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("408 Slow", UnavailableError, "fails with 408 Slow$"),
        ("429 TooManyRequests", UnavailableError, "fails with 429 TooManyRequests$"),
        ("500 InternalError", UnavailableError, "500 InternalError when it is written to: is there room"),
        ("502 BadGateway", UnavailableError, "fails with 502 BadGateway$"),
        ("503 SlowDown", UnavailableError, "503 SlowDown when it is written to: is there room"),
        ("504 GatewayTimeout", UnavailableError, "fails with 504 GatewayTimeout$"),
        ("505 Odd", UnavailableError, "fails with 505 Odd"),
        ("507 XMinioStorageFull", OverloadedError, r"is full \(507 XMinioStorageFull\): free some space"),
        ("403 QuotaExceeded", OverloadedError, "is full .*raise its quota"),
        ("400 BadDigest", UnavailableError, "the bytes of a did not reach it whole"),
        ("400 IncompleteBody", UnavailableError, "did not reach it whole"),
        ("400 RequestTimeout", UnavailableError, "did not reach it whole"),
        ("403 RequestTimeTooSkewed", UnavailableError, "clocks of the two machines differ"),
        ("403 InvalidAccessKeyId", UnavailableError, "no such access key"),
        ("403 SignatureDoesNotMatch", UnavailableError, "the secret key does not belong"),
        ("403 AccessDenied", UnavailableError, "check s3_access_key, s3_secret_key, and that they allow s3:PutObject"),
        ("401 Unauthorized", UnavailableError, "refuses access"),
        ("400 ExpiredToken", UnavailableError, "the credentials have expired"),
        ("403 InvalidObjectState", UnavailableError, "restore it"),
        ("400 AuthorizationHeaderMalformed", UnavailableError, "is elsewhere .*check s3_region"),
        ("301 PermanentRedirect", UnavailableError, "is elsewhere .*check s3_region"),
        ("404 NoSuchBucket", UnavailableError, "has no bucket 'madpo-test': create it"),
        ("404 NoSuchKey", NotFoundError, "no object a"),
        ("409 OperationAborted", UnavailableError, "is being written by another"),
        ("412 PreconditionFailed", FailedPreconditionError, "not in the expected version"),
        ("501 NotImplemented", FailedPreconditionError, "does not offer what is needed"),
        ("405 MethodNotAllowed", FailedPreconditionError, "does not offer what is needed"),
        ("400 InvalidRequest", InternalError, "refuses a request for a"),
    ],
)
def test_every_class_of_refusals_is_met_by_waiting_or_by_refusing(
    settings: StoreSettings, proxy: Proxy, said: str, error: type[MadpoError], told: str
) -> None:
    store = make_store(settings, endpoint=f"127.0.0.1:{proxy.server_port}", retries=1)
    proxy.faults = [("PUT", said)] * 2

    with pytest.raises(error, match=told) as caught:
        store.put("a", b"1")

    assert type(caught.value).__mro__.index(error) <= 1
    assert "\n" not in str(caught.value)
    assert len(proxy.injected) == (2 if int(said[:3]) in REPEATED else 1)


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE", "LIST", "names", "parts", "stream"])
@pytest.mark.parametrize("page", [*PAGES])
def test_what_answers_in_the_place_of_the_server_is_no_object_and_no_defect(
    settings: StoreSettings, proxy: Proxy, tmp_path: Path, page: str, method: str
) -> None:
    store = make_store(settings, endpoint=f"127.0.0.1:{proxy.server_port}", retries=0)
    (tmp_path / "large").write_bytes(bytes(33 << 20))
    actions: dict[str, tuple[str, Callable[[], Any]]] = {
        "GET": ("GET", lambda: store.get("a")),
        "PUT": ("PUT", lambda: store.put("a", b"1")),
        "HEAD": ("HEAD", lambda: store.head("a")),
        "DELETE": ("DELETE", lambda: store.delete("a")),
        "LIST": ("GET", lambda: list(store.list("a"))),
        "names": ("GET", lambda: list(store.list_names("a"))),
        "stream": ("GET", lambda: store.get_file("a", tmp_path / "copy")),
        "parts": ("POST", lambda: store.put_file("a", tmp_path / "large")),
    }
    verb, action = actions[method]
    # A proxy answers all alike, and whoever is in doubt asks again in another way.
    proxy.faults = [(verb, page)] * 4 + [("GET", page)]

    with pytest.raises(UnavailableError, match=r"object store http://127\.0\.0\.1:\d+ "):
        action()


def test_a_head_that_is_answered_by_another_is_no_word_on_what_is_there(proxied: S3Store, proxy: Proxy) -> None:
    proxied.put("a", b"1")
    proxy.faults = [("HEAD", "a page of another status")]

    found = proxied.head("a")

    assert found is not None
    assert found.size_bytes == 1
    assert proxied.head("b") is None
    assert len(proxy.injected) == 1


def test_the_removal_of_what_is_gone_is_fine_where_the_server_says_that_it_is(proxied: S3Store, proxy: Proxy) -> None:
    proxy.faults = [("DELETE", "404 NoSuchKey")]

    proxied.delete("a")

    assert len(proxy.injected) == 1


def test_a_server_cannot_make_us_wait_for_an_hour(proxied: S3Store, proxy: Proxy, monkeypatch: Any) -> None:
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    proxied.put("a", b"1")
    proxy.faults = [("GET", "wait long")]

    assert proxied.get("a") == b"1"
    assert slept == [10]


def test_parts_that_were_not_put_together_are_sent_again(proxied: S3Store, proxy: Proxy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789abcdef" * (33 << 16))
    proxy.faults = [("POST", ""), ("POST", "fail in the reply")]

    proxied.put_file("big", source)

    proxied.get_file("big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_an_unreachable_server_is_named(settings: StoreSettings) -> None:
    store = make_store(settings, endpoint="127.0.0.1:9", retries=0)

    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9 .*s3_endpoint"):
        store.check()


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("s3_access_key", r"\(InvalidAccessKeyId\): it knows no such access key: check s3_access_key"),
        ("s3_secret_key", r"\(SignatureDoesNotMatch\): the secret key does not belong to the access key"),
    ],
)
def test_wrong_credentials_are_refused_when_the_store_is_opened(
    settings: StoreSettings, field: str, reason: str
) -> None:
    where = rf"object store {settings.s3_endpoint} refuses access to {settings.store_url[5:]}/ for s3:ListBucket "

    with pytest.raises(FailedPreconditionError, match=where + reason) as refused:
        open_store(settings.model_copy(update={field: SecretStr("wrong-wrong")}))

    assert "wrong-wrong" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_bucket_is_made(settings: StoreSettings) -> None:
    bucket = f"madpo-test-{uuid4().hex[:12]}"

    store = open_store(settings.model_copy(update={"store_url": f"s3://{bucket}"}))

    store.put("a", b"1")
    assert [info.key for info in store.list("")] == ["a"]


def test_stores_with_other_prefixes_do_not_meet(s3_settings: StoreSettings) -> None:
    root = f"{s3_settings.store_url}/{uuid4().hex}"
    one, two = (open_store(s3_settings.model_copy(update={"store_url": f"{root}/{name}"})) for name in ("one", "two"))

    one.put("a", b"1")

    assert list(two.list("")) == []
    with pytest.raises(NotFoundError):
        two.get("a")


@pytest.mark.parametrize("ignored", ["put_if_absent", "put_if_match"])
def test_a_server_that_ignores_conditions_is_refused(tmp_path: Path, ignored: str) -> None:
    class Careless(LocalStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            return bool(self.put(key, data)) if ignored == "put_if_absent" else super().put_if_absent(key, data)

        def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
            return self.put(key, data) if ignored == "put_if_match" else super().put_if_match(key, data, etag)

    store = Careless(tmp_path)

    with pytest.raises(FailedPreconditionError, match="ignores If-None-Match or If-Match"):
        check_conditional_writes(store, "http://careless")
    assert list(store.list("")) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"store_url": "ftp://host/dir"}, "store_url"),
        ({"store_url": "relative/dir"}, "store_url"),
        ({"store_url": "file://host/dir"}, "store_url"),
        ({"store_url": "s3:///prefix"}, "store_url"),
        ({"store_url": "s3://bucket/a//b"}, "cannot be stored"),
        ({"s3_endpoint": None}, "s3_endpoint"),
        ({"s3_endpoint": "host:9000"}, "s3_endpoint"),
        ({"s3_endpoint": "http://host:9000/path"}, "s3_endpoint"),
        ({"s3_access_key": None}, "s3_access_key"),
        ({"s3_secret_key": None}, "s3_secret_key"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], named: str) -> None:
    settings = StoreSettings(
        store_url="s3://bucket",
        s3_endpoint="http://127.0.0.1:9",
        s3_access_key=SecretStr("access"),
        s3_secret_key=SecretStr("secret"),
    )

    with pytest.raises(InvalidArgumentError, match=named):
        open_store(settings.model_copy(update=changes))


def make_store(settings: StoreSettings, *, endpoint: str, retries: int) -> S3Store:
    assert settings.s3_access_key
    assert settings.s3_secret_key
    return S3Store(
        "madpo-test",
        endpoint=endpoint,
        secure=False,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        region=settings.s3_region,
        retries=retries,
    )
