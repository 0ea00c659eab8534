"""Weights that a dataset gives its pairs multiply their losses; their names reach the ledger."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest

from madpo.errors import FailedPreconditionError
from madpo.storage.artifacts import open_artifact
from madpo.storage.datasets import DatasetStore
from madpo.types import DatasetKind
from tests.integration.trainer.training_site import PAIRS, Site, job_id

WEIGHTS = [None, 0.0, 0.5, 3.0]


def train(site: Site, name: str, weights: Sequence[float | None], **training: Any) -> tuple[Any, dict[int, dict], dict]:
    """Two steps over all pairs; gives the outcome, and of the first step the ledger by row and the metrics."""
    pairs = [
        replace(pair, weight=weights[index % len(weights)], id=f"pair {index}" if index else None, source="films")
        for index, pair in enumerate(PAIRS)
    ]
    dataset, _ = DatasetStore(site.store).write(
        pairs, kind=DatasetKind.PREFERENCE, display_name="", scratch=site.home / "scratch"
    )
    spec = {
        "dataset": dataset.dataset_id,
        "method": {"name": "dpo", "params": {}},
        "training": {
            "max_steps": 2,
            "global_batch_size": len(PAIRS),
            "micro_batch_tokens": 40,
            "max_tokens": 32,
            "optimizer": {"learning_rate": 1e-2, "warmup_ratio": 0.0, "weight_decay": 0.0},
        },
    }
    outcome = site.train(name, spec)
    assert outcome.kind == "succeeded", outcome.reason
    with open_artifact(site.store, job_id(name), "ledger.parquet") as stream:
        rows = pq.read_table(io.BytesIO(stream.read())).to_pylist()
        ledger = {row["row"]: row for row in rows if row["step"] == 1}
    with open_artifact(site.store, job_id(name), "metrics.jsonl") as stream:
        metrics = [json.loads(line) for line in stream]
    return outcome, ledger, metrics[0]


def test_a_weight_multiplies_the_loss_and_its_gradient(site: Site) -> None:
    plain_outcome, plain, plain_metrics = train(site, "plain", [None])
    outcome, ledger, metrics = train(site, "weighted", WEIGHTS)
    ones = train(site, "ones", [1.0])[0]

    given = {row: 1.0 if weight is None else weight for row in plain for weight in [WEIGHTS[(row - 1) % 4]]}
    assert {row: entry["weight"] for row, entry in ledger.items()} == given
    assert {row: entry["loss"] for row, entry in ledger.items()} == pytest.approx(
        {row: weight * plain[row]["loss"] for row, weight in given.items()}
    )
    assert metrics["loss"] == pytest.approx(sum(entry["loss"] for entry in ledger.values()) / len(PAIRS))
    assert metrics["dataset_weight/mean"] == pytest.approx(sum(given.values()) / len(PAIRS))
    assert "dataset_weight/mean" not in plain_metrics
    assert ones.result.model_id == plain_outcome.result.model_id != outcome.result.model_id


def test_weights_that_are_all_zero_train_nothing_and_the_job_says_so(site: Site) -> None:
    with pytest.raises(FailedPreconditionError, match=r"nothing was trained: every gradient .* the weight 0"):
        train(site, "nothing", [0.0])


def test_names_and_weights_of_rows_are_in_the_ledger(site: Site) -> None:
    _, ledger, _ = train(site, "named", WEIGHTS)

    assert [ledger[row]["id"] for row in (1, 2, 3)] == [None, "pair 1", "pair 2"]
    assert {entry["source"] for entry in ledger.values()} == {"films"}
    assert [ledger[row]["dataset_weight"] for row in (1, 2, 3, 4)] == WEIGHTS
