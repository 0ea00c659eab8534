from pathlib import Path

import pytest

from madpo.storage import keys
from madpo.storage.local import LocalStore
from madpo_evaluator import engines
from madpo_evaluator.engines import engine_version
from madpo_evaluator.generations import Generation, KeptGenerations
from madpo_evaluator.settings import EvaluatorSettings

JOB = "job-" + "1" * 32


def drawn(sample: int) -> Generation:
    return Generation(0, "the film", sample, 1.0, f"was good {sample}", 3, True)


def test_a_job_goes_on_behind_what_the_same_engine_has_drawn_and_no_other(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")

    def kept(engine: str) -> KeptGenerations:
        return KeptGenerations(store, JOB, engine=engine, scratch=tmp_path)

    kept("transformers-5.0").add([drawn(0), drawn(1)])
    kept("vllm-0.11.0").add([drawn(2)])

    assert kept("transformers-5.0").read() == [drawn(0), drawn(1)]
    assert kept("vllm-0.11.0").read() == [drawn(2)]
    assert kept("vllm-0.11.1").read() == []

    kept("vllm-0.11.0").remove()

    assert list(store.list(keys.generations(JOB))) == []


def test_an_engine_is_named_with_its_version_as_a_key_may_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EvaluatorSettings(
        store_url=f"file://{tmp_path}", redis_url="redis://127.0.0.1:1/0", workspace=tmp_path, engine="vllm"
    )
    monkeypatch.setattr(engines, "version", lambda name: {"vllm": "0.11.0+cu128"}[name])

    assert engine_version(settings) == "vllm-0.11.0_cu128"
