"""A stack with a console, and a base model that is trained in a moment."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from madpo_client import Client
from madpo_client.embedded import EmbeddedStack
from madpo_examples.toy_reviews.model import make_base_model
from tests.integration.console.site import Site, rows

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    home = tmp_path_factory.mktemp("stack")
    with EmbeddedStack(home, reward_replicas=0, evaluators=0, threads=1, console=True) as stack:
        yield stack


@pytest.fixture(scope="session")
def site(stack: EmbeddedStack) -> Site:
    connection = stack.connection()
    assert connection is not None
    port = next(process.port for process in connection.processes if process.name == "console")
    return Site(f"http://127.0.0.1:{port}", Path(connection.token_file).read_text())


@pytest.fixture(scope="session")
def client(stack: EmbeddedStack) -> Iterator[Client]:
    with stack.client() as client:
        yield client


@pytest.fixture(scope="session")
def base(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("base")
    make_base_model(directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return client.models.upload(directory, name="tiny").model_id


@pytest.fixture(scope="session")
def openai(site: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{site.url}/v1", api_key=site.token, max_retries=0, timeout=120) as openai:
        yield openai


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(48)))
    return path


@pytest.fixture(scope="session")
def other_pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of other content, so that it has a name of its own."""
    path = tmp_path_factory.mktemp("files") / "other-pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    return path
