"""What a check of a stored dataset leaves for trainings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madpo.ports import Claim
from madpo.storage import tokens
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.storage.tokens import TokenStore
from madpo.types import DatasetKind, Job, JobKind, JobState, Message, PreferencePair
from madpo.worker.workspace import Run, Workspace
from madpo_evaluator.kinds.base import JobInputs
from madpo_evaluator.kinds.dataset_check import DatasetCheckRun
from madpo_evaluator.settings import EvaluatorSettings
from tests.model_directories import save_directory


@pytest.mark.parametrize("bad_row", [None, 3])
def test_tokens_are_kept_up_to_the_first_row_that_has_none(
    tmp_path: Path,
    make_toy_lm: Callable[..., Any],
    make_toy_tokenizer: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    bad_row: int | None,
) -> None:
    monkeypatch.setattr(tokens, "_PART_ROWS", 2)
    store = LocalStore(tmp_path / "store")
    datasets, models = DatasetStore(store), ModelStore(store, tmp_path / "cache")
    picky = "{{ raise_exception('no system here') if messages[0]['role'] == 'system' }}"
    tokenizer = make_toy_tokenizer(template=picky + make_toy_tokenizer().chat_template)
    save_directory(make_toy_lm(), tokenizer, tmp_path / "model")
    model, _ = models.publish(tmp_path / "model", display_name="toy", kind="causal_lm")
    rows = [
        PreferencePair(
            (Message("system" if row == bad_row else "user", "film"), Message("user", "film"))[row != bad_row :],
            (Message("assistant", "good"),),
            (Message("assistant", "bad"),),
            row=row,
        )
        for row in range(1, 7)
    ]
    dataset, _ = datasets.write(rows, kind=DatasetKind.PREFERENCE, display_name="", scratch=tmp_path / "scratch")
    spec = {"dataset": dataset.dataset_id, "model": {"model_id": model.model_id}}
    job = Job("job-" + "1" * 32, JobKind.DATASET_CHECK, JobState.RUNNING, spec, attempt=1)
    workspace = Workspace(tmp_path / "jobs" / job.job_id, Claim(job, 1, "worker"))
    settings = EvaluatorSettings(
        store_url=f"file://{tmp_path}/store", redis_url="redis://127.0.0.1:1/0", workspace=tmp_path
    )

    DatasetCheckRun(JobInputs.open(Run.open(workspace.directory), settings)).execute()
    workspace.close()

    kept = TokenStore(store)
    assert kept.has(dataset.dataset_id, tokenizer) is (bad_row is None)
    # Of whole parts: a training that goes on behind them counts rows.
    assert kept.rows_kept(dataset.dataset_id, tokenizer) == (6 if bad_row is None else 2)
