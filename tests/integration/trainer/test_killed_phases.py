"""A training that is killed in a long phase: the next attempt goes on behind what is stored, to the same bytes."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from madpo.storage import tokens
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.growing import GrowingBundle
from madpo.types import Checkpoint
from madpo.worker import phase
from madpo.worker.phase import Phase
from madpo_trainer.kinds import policy_training
from madpo_trainer.objectives.policy import PolicyObjective
from madpo_trainer.stored_reference import ReferenceStore
from tests.integration.trainer.training_site import Site

pytestmark = pytest.mark.data

TRAINING = {
    "max_steps": 4,
    "global_batch_size": 4,
    "micro_batch_tokens": 40,
    "max_tokens": 64,
    "checkpoint_every_steps": 1,
    "eval_every_steps": 2,
}
PATIENCE_S = 240


def in_small_pieces(patch: Callable[[Any, str, Any], None]) -> None:
    """Several pieces of each phase, for twenty pairs."""
    patch(tokens, "_PART_ROWS", 4)
    patch(phase, "_ITEMS_AT_ONCE", 1)
    patch(policy_training, "_CHUNK_MICRO_BATCHES", 1)


def die_behind(owner: type, method: str, call: int, *, when: Callable[[Any], bool] = lambda _: True) -> None:
    """Have a call of a method, counted from 1, be the last thing that this process does."""
    original, calls = getattr(owner, method), iter(range(1, 1_000_000))

    def dying(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        if when(self) and next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, dying)


def is_second_evaluation(phase: Phase) -> bool:
    """That behind step 2, once the checkpoint of step 1 is stored; the first is of the initial weights."""
    if (phase._name, phase._step) != ("held-out evaluation", 2):
        return False
    deadline = time.monotonic() + PATIENCE_S
    while (phase._run.directory / "checkpoint-1").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


def die_before_manifest(call: int) -> None:
    """Have the process die in a publication of a checkpoint, counted from 1, whose files are stored."""
    publish, calls = CheckpointStore.publish, iter(range(1, 1_000_000))

    def dying(self: CheckpointStore, step: int, directory: Path, **options: Any) -> Checkpoint:
        if next(calls) == call:
            options["others"] = lambda: os.kill(os.getpid(), signal.SIGKILL)
        return publish(self, step, directory, **options)

    setattr(CheckpointStore, "publish", dying)  # noqa: B010 - mypy takes an assignment for a mistake


DEATHS = {
    "tokenizing": partial(die_behind, GrowingBundle, "add", 2),
    "reference log-probs": partial(die_behind, ReferenceStore, "_save", 2),
    "held-out evaluation": partial(die_behind, Phase, "advance", 2, when=is_second_evaluation),
    "upload of a checkpoint": partial(die_before_manifest, 3),
}


def spec(site: Site) -> dict[str, Any]:
    method = {"name": "x_sgdpo", "params": {}}
    return {"method": method, "training": TRAINING, "dataset": site.pairs, "eval_dataset": site.pairs}


def train_and_die(site: Site, where: str) -> None:
    """What the killed process does."""
    torch.set_num_threads(1)
    in_small_pieces(setattr)
    DEATHS[where]()
    site.train("job", spec(site))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_toy_lm: Any, make_toy_tokenizer: Any) -> Iterator[Site]:
    """Where the same job was never killed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        in_small_pieces(patch.setattr)
        site = Site.make(tmp_path_factory.mktemp("whole"), make_toy_lm(), make_toy_tokenizer())
        assert site.train("job", spec(site)).kind == "succeeded"
        yield site
    torch.set_num_threads(before)


@pytest.mark.promise("T1")
@pytest.mark.parametrize(
    ("where", "owner", "method", "pieces", "kept"),
    [
        ("tokenizing", GrowingBundle, "add", 5, 2),
        ("reference log-probs", ReferenceStore, "_save", 12, 2),
        # Of four steps the first has its checkpoint: that of a step comes behind its evaluation.
        ("held-out evaluation", PolicyObjective, "begin", 4, 1),
        # Training is ahead of what is stored: it goes on from the second of the checkpoints.
        ("upload of a checkpoint", PolicyObjective, "begin", 4, 2),
    ],
)
def test_a_training_killed_in_a_long_phase_keeps_what_it_had_done_and_ends_with_the_same_bytes(
    tmp_path: Path,
    make_toy_lm: Any,
    make_toy_tokenizer: Any,
    whole: Site,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    owner: type,
    method: str,
    pieces: int,
    kept: int,
) -> None:
    site = Site.make(tmp_path, make_toy_lm(), make_toy_tokenizer())
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(site, where))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert models(site) != models(whole)

    made, original = [], getattr(owner, method)

    def counting(*arguments: Any) -> Any:
        if not getattr(arguments[0], "_prefix", "").startswith("reference_logps/"):  # bundles too, of another phase
            made.append(method)
        return original(*arguments)

    monkeypatch.setattr(owner, method, counting)
    outcome = site.train("job", spec(site), first=2)

    assert outcome.kind == "succeeded"
    assert len(made) == pieces - kept
    assert models(site) == models(whole)
    assert untimed(site.metrics("job")) == untimed(whole.metrics("job"))


def models(site: Site) -> list[str]:
    """Named by their content."""
    return [info.key for info in site.store.list("models/")]


UNLIKE = ("rows_per_s", "tokens_per_s", "peak_memory_gib")
"""Figures of a step that are others each time."""


def untimed(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in each.items() if "time/" not in name and name not in UNLIKE} for each in metrics
    ]
