"""`madpo dataset upload hub:...`: the `datasets` library reads a hub on loopback, and the rows become a dataset."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from madpo.errors import InvalidArgumentError
from madpo_client.embedded import EmbeddedStack
from tests.hub_mirror import COMMIT, hub

pytestmark = pytest.mark.data

PAIRS = [{"prompt": f"{number}+1?", "chosen": str(number + 1), "rejected": "no"} for number in range(6)]


def parquet(rows: list[dict[str, str]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


CARD = b"""---
configs:
- config_name: easy
  data_files: [{split: train, path: easy/train-*.parquet}, {split: test, path: easy/test.parquet}]
- config_name: hard
  data_files: [{split: train, path: hard/train.parquet}]
---
"""
FILES = {
    "README.md": CARD,
    "easy/train-00000-of-00002.parquet": parquet(PAIRS[:2]),
    "easy/train-00001-of-00002.parquet": parquet(PAIRS[2:3]),
    "easy/test.parquet": parquet(PAIRS[3:5]),
    "hard/train.parquet": parquet(PAIRS[5:]),
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    with EmbeddedStack(tmp_path_factory.mktemp("stack"), reward_replicas=0, trainers=0, evaluators=0) as stack:
        yield stack


def upload(
    stack: EmbeddedStack, tmp_path: Path, *arguments: str, gate: str = "", token: str = ""
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its endpoint once."""
    with hub(FILES, repo="somebody/pairs", kind="datasets", gate=gate) as url:
        return subprocess.run(
            [sys.executable, "-m", "madpo_client.cli", "dataset", "upload", *arguments],
            env=os.environ
            | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_TOKEN": token, "MADPO_HOME": str(stack.home)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def test_a_split_of_a_configuration_is_uploaded_from_the_commit_that_a_tag_is(
    stack: EmbeddedStack, tmp_path: Path
) -> None:
    done = upload(
        stack, tmp_path, "hub:somebody/pairs", "--config", "easy", "--split", "train", "--revision", "v1", "--json"
    )

    assert done.returncode == 0, done.stderr
    dataset = json.loads(done.stdout)
    assert (dataset["rows"], dataset["display_name"]) == (3, f"somebody/pairs/easy/train@{COMMIT[:12]}")
    assert f"somebody/pairs: v1 is commit {COMMIT}" in done.stderr.splitlines()
    with stack.client() as client:
        assert [row.prompt for row in client.datasets.read_rows(dataset["dataset_id"], [1, 3])] == ["0+1?", "2+1?"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["hub:somebody/pairs"], "config is not given, and somebody/pairs has easy, hard"),
        (["hub:somebody/pairs", "--config", "easy"], "split is not given, and somebody/pairs has train, test"),
        (["hub:somebody/pairs", "--config", "hard", "--split", "trian"], "no split 'trian'; did you mean train?"),
        (["hub:somebody/pairs", "--revision", "v2"], "the hub has no dataset somebody/pairs at v2"),
        (["hub:somebody/others"], "the hub has no dataset somebody/others at main"),
        (["hub:private/pairs"], "the hub refuses dataset private/pairs (HTTP 403): give this machine a token"),
    ],
)
def test_what_is_meant_must_be_clear_and_there(
    stack: EmbeddedStack, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    done = upload(stack, tmp_path, *arguments)

    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gated_dataset_says_how_it_is_had_and_is_read_with_a_token(stack: EmbeddedStack, tmp_path: Path) -> None:
    arguments = ("hub:somebody/pairs", "--config", "easy", "--split", "train", "--quiet")

    refused = upload(stack, tmp_path, *arguments, gate="hf_abc")
    read = upload(stack, tmp_path, *arguments, gate="hf_abc", token="hf_abc")

    assert refused.returncode == 1
    assert "dataset somebody/pairs is gated: accept its terms on its page of the hub, and give this" in refused.stderr
    assert (read.returncode, read.stdout.startswith("dataset-")) == (0, True)


def test_a_revision_is_for_the_hub_alone(stack: EmbeddedStack) -> None:
    with stack.client() as client, pytest.raises(InvalidArgumentError, match="config and revision are for datasets of"):
        client.datasets.upload(PAIRS, revision="main")
