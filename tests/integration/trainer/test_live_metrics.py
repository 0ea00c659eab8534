"""What can be read of a training while it runs, and when it has ended."""

import json

from madpo.storage.artifacts import list_artifacts, open_artifact
from madpo.worker.workspace import Run
from madpo_trainer import artifacts
from tests.integration.trainer.training_site import job_id


def spec(site):
    training = {"max_steps": 4, "global_batch_size": 8, "max_tokens": 32, "checkpoint_every_steps": 2}
    return {"dataset": site.pairs, "method": {"name": "dpo", "params": {}}, "training": training}


def test_metrics_are_there_with_each_checkpoint_and_curves_at_the_end(site, monkeypatch):
    seen = {}
    published = Run.checkpoint_published

    def look(run, step):
        published(run, step)
        with open_artifact(site.store, job_id("live"), "metrics.jsonl") as file:
            seen[step] = [json.loads(line)["step"] for line in file]

    monkeypatch.setattr(Run, "checkpoint_published", look)

    outcome = site.train("live", spec(site))

    assert seen == {2: [1, 2], 4: [1, 2, 3, 4]}
    assert outcome.result.warnings == ()
    assert [file.path for file in list_artifacts(site.store, job_id("live"))] == [
        "ledger.parquet",
        "metrics.jsonl",
        "training.png",
    ]


def test_curves_that_cannot_be_drawn_cost_a_warning(site, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(artifacts, "write_curves", broken)

    outcome = site.train("broken", spec(site))

    assert outcome.kind == "succeeded"
    (warning,) = outcome.result.warnings
    assert warning.startswith("training.png failed: ")
    assert "no fonts" in warning
