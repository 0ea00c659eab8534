"""Jobs that leave datasets: sampled pairs, and rows with a reward model's rewards."""

import asyncio
import json
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from madpo.errors import FailedPreconditionError
from madpo.storage import keys
from madpo.storage.artifacts import list_artifacts, open_artifact
from madpo.storage.datasets import DatasetStore
from madpo.types import DatasetKind, JobKind, JobProgress, JobResult, PreferencePair, ResponseList
from madpo_evaluator.kinds import scoring
from madpo_evaluator.kinds.scoring import KeptRewards
from tests.integration.evaluator.evaluation_site import PAIRS, Site, WordCounter, job_id

REWARD_MODEL = "model-" + "0" * 32
SAMPLING: dict[str, Any] = {
    "reward_model": {"model_id": REWARD_MODEL},
    "sampling": {"samples_per_prompt": 6, "max_new_tokens": 8},
    "keep_unfinished": True,
    "generation_batch_size": 7,
}


async def sample(site: Site, name: str, spec: Mapping[str, Any]) -> JobResult:
    spec = {**SAMPLING, **spec}
    workspace = site.workspace(job_id(name), spec, kind=JobKind.SAMPLING)
    return await site.execute(job_id(name), spec, workspace=workspace)


async def score(site: Site, name: str, dataset_id: str, *, attempt: int = 1) -> JobResult:
    spec = {"reward_model": {"model_id": REWARD_MODEL}, "dataset": {"dataset_id": dataset_id}}
    workspace = site.workspace(job_id(name), spec, kind=JobKind.SCORING, attempt=attempt)
    return await site.execute(job_id(name), spec, workspace=workspace)


def pairs_of(site: Site, result: JobResult) -> list[PreferencePair]:
    assert result.dataset_id is not None
    return cast(list[PreferencePair], list(DatasetStore(site.store).read(result.dataset_id)))


def text(content: Any) -> str:
    return content if isinstance(content, str) else cast(str, content[0].content)


async def test_a_sampling_leaves_pairs_of_its_own_responses(site: Site) -> None:
    result = await sample(site, "sampled", {})

    pairs, responses = pairs_of(site, result), site.generations(job_id("sampled"))
    assert len(responses) == 6 * 6
    answers: dict[str, list[str]] = defaultdict(list)
    for each in responses:
        assert each["metrics"]["reward"] == len(each["response"].split())
        answers[json.dumps(each["prompt"])].append(each["response"])
    assert [pair.row for pair in pairs] == list(range(1, len(pairs) + 1))
    assert {pair.source for pair in pairs} == {"sampled"}
    for pair in pairs:
        prompt = pair.prompt if isinstance(pair.prompt, str) else [{"role": "user", "content": "good"}]
        given = answers[json.dumps(prompt)]
        lengths = [len(response.split()) for response in given if response.strip()]
        chosen, rejected = len(text(pair.chosen).split()), len(text(pair.rejected).split())
        assert {text(pair.chosen), text(pair.rejected)} <= set(given)
        assert (chosen, rejected) == (pair.chosen_reward, pair.rejected_reward) == (max(lengths), min(lengths))
        assert pair.reward_margin == chosen - rejected > 0
        assert isinstance(pair.chosen, str) == isinstance(pair.prompt, str)
    assert result.summary["pairs"] == len(pairs) > 2
    assert result.summary["pairs"] + result.summary["prompts_without_pair"] == result.summary["prompts"] == 6
    assert {file.path for file in list_artifacts(site.store, job_id("sampled"))} == {
        "generations.jsonl",
        "sampling.json",
    }
    with open_artifact(site.store, job_id("sampled"), "sampling.json") as stream:
        assert json.load(stream) == result.summary
    assert (await sample(site, "again", {})).dataset_id == result.dataset_id
    assert list(site.store.list(keys.generations(job_id("sampled")))) == []


async def test_pairs_may_be_mixed_in_and_are_scored_like_the_others(site: Site) -> None:
    alone = pairs_of(site, await sample(site, "alone", {}))
    result = await sample(site, "mixed", {"mixed_dataset": {"dataset_id": site.pairs_id}})
    some = await sample(site, "some", {"mixed_dataset": {"dataset_id": site.pairs_id}, "mixed_pairs": 2})

    *fresh, first, second, third = pairs_of(site, result)
    assert fresh == alone
    for pair, given in zip((first, second, third), PAIRS, strict=True):
        assert (pair.prompt, pair.chosen, pair.rejected) == (given.prompt, given.chosen, given.rejected)
        assert pair.reward_margin == len(text(given.chosen)) - len(text(given.rejected))
    assert (result.summary["mixed_pairs"], some.summary["mixed_pairs"]) == (3, 2)
    assert [pair.row for pair in pairs_of(site, some)] == list(range(1, len(alone) + 3))


async def test_soft_labels_are_two_weighted_pairs(site: Site) -> None:
    hard = pairs_of(site, await sample(site, "hard", {}))
    soft = pairs_of(site, await sample(site, "soft", {"labels": "soft", "label_temperature": 2.0}))

    assert len(soft) == 2 * len(hard)
    for straight, turned in zip(soft[::2], soft[1::2], strict=True):
        assert (straight.chosen, straight.rejected) == (turned.rejected, turned.chosen)
        assert (straight.weight or 0) + (turned.weight or 0) == pytest.approx(1)
        assert (straight.weight or 0) > 0.5


async def test_all_of_a_prompt_may_stay_together_as_a_list(site: Site) -> None:
    result = await sample(site, "lists", {"pairing": {"name": "all_as_list", "params": {"fewest": 3}}})

    assert result.dataset_id is not None
    datasets = DatasetStore(site.store)
    assert datasets.get(result.dataset_id).kind is DatasetKind.LIST
    lists = cast(list[ResponseList], list(datasets.read(result.dataset_id)))
    assert result.summary["lists"] == len(lists) > 0
    for row in lists:
        assert len(row.responses) == len(set(row.responses)) >= 3
        assert list(row.scores) == [len(text(response).split()) for response in row.responses]
    widest = max(max(row.scores) - min(row.scores) for row in lists)
    assert result.summary["absolute_margin"]["0.95"] <= widest


async def test_without_any_pair_the_job_says_why(site: Site) -> None:
    spec = {"sampling": {"samples_per_prompt": 2, "max_new_tokens": 1}, "keep_unfinished": False}

    with pytest.raises(FailedPreconditionError) as caught:
        await sample(site, "nothing", spec)

    message = str(caught.value)
    assert message.startswith("no pair could be made of 12 responses: ")
    assert "were cut off at 1 tokens (raise sampling.max_new_tokens, set keep_unfinished, or train" in message


KILLED_BEHIND_BATCH = """
import os, signal, sys
from pathlib import Path
from madpo_evaluator.generations import KeptGenerations
from madpo_evaluator.run import main

add, batches = KeptGenerations.add, []

def add_and_die(self, batch):
    add(self, batch)
    batches.append(batch)
    if len(batches) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

KeptGenerations.add = add_and_die
main(Path(sys.argv[1]))
"""


async def test_a_sampling_killed_on_its_way_leaves_the_same_dataset(site: Site) -> None:
    whole, killed = await sample(site, "whole", {}), job_id("killed")
    workspace = site.workspace(killed, SAMPLING, kind=JobKind.SAMPLING)
    command = [sys.executable, "-c", KILLED_BEHIND_BATCH, str(workspace.directory)]
    assert await site.launch(workspace, command) == -signal.SIGKILL
    workspace.close()
    assert len(list(site.store.list(keys.generations(killed)))) == 2

    workspace = site.workspace(killed, SAMPLING, attempt=2, kind=JobKind.SAMPLING)
    result = await site.execute(killed, SAMPLING, workspace=workspace)

    generating = [
        event for event in workspace.new_events() if isinstance(event, JobProgress) and event.phase == "generating"
    ]
    assert generating[0].phase_done == 2 * 7
    assert result.dataset_id == whole.dataset_id
    assert dict(result.summary) == dict(whole.summary)


async def test_a_scoring_leaves_the_pairs_with_rewards(site: Site) -> None:
    result = await score(site, "scored", site.pairs_id)

    for pair, given in zip(pairs_of(site, result), PAIRS, strict=True):
        assert (pair.prompt, pair.chosen, pair.rejected, pair.row) == (
            given.prompt,
            given.chosen,
            given.rejected,
            given.row,
        )
        assert (pair.chosen_reward, pair.rejected_reward) == (len(text(given.chosen)), len(text(given.rejected)))
        assert pair.reward_margin == len(text(given.chosen)) - len(text(given.rejected))
    assert result.summary["rows"] == 3
    assert result.summary["contradicted_ratio"] == 0.0
    assert result.summary["reward_margin"]["mean"] == pytest.approx(5 / 3)


def stored(site: Site, rows: Sequence[Any], kind: DatasetKind, scratch: Path) -> str:
    dataset, _ = DatasetStore(site.store).write(rows, kind=kind, display_name="rows", scratch=scratch)
    return dataset.dataset_id


async def test_a_scoring_gives_lists_new_scores_and_leaves_out_what_it_cannot_order(site: Site, tmp_path: Path) -> None:
    lists = [
        ResponseList("the", ("a b c", "a"), (0.0, 1.0), row=1),
        ResponseList("the", ("a b", "c d"), (0.0, 1.0), row=2),
    ]

    result = await score(site, "lists", stored(site, lists, DatasetKind.LIST, tmp_path / "scratch"))

    (left,) = cast(list[ResponseList], pairs_of(site, result))
    assert (left.responses, left.scores) == (("a b c", "a"), (3.0, 1.0))
    assert result.warnings == ("1 lists are left out: the reward model scores all their responses alike",)


@pytest.mark.parametrize("revision", ["revision-1", "revision-2"])
async def test_a_scoring_that_was_stopped_asks_for_the_rest_or_anew_where_the_model_changed(
    site: Site, scorer: WordCounter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    monkeypatch.setattr(scoring, "_ROWS_AT_ONCE", 4)
    pairs = [PreferencePair("the", "x" * length, "x", row=length) for length in range(2, 12)]
    dataset_id = stored(site, pairs, DatasetKind.PREFERENCE, tmp_path / "scratch")
    add, kept = KeptRewards.add, []

    def add_and_fail(self: KeptRewards, *arguments: Any) -> None:
        add(self, *arguments)
        kept.append(arguments)
        if len(kept) == 2:
            raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(KeptRewards, "add", add_and_fail)
        with pytest.raises(asyncio.CancelledError):
            await score(site, "stopped", dataset_id)
    assert len(list(site.store.list(keys.rewards(job_id("stopped"))))) == 2
    asked, scorer.asked, scorer.revision = scorer.asked, 0, revision

    result = await score(site, "stopped", dataset_id, attempt=2)

    assert asked == 8
    assert scorer.asked == (2 if revision == "revision-1" else 10)
    assert [pair.reward_margin for pair in pairs_of(site, result)] == [float(length - 1) for length in range(2, 12)]
    assert result.summary["reward_model_revision"] == revision
    assert list(site.store.list(keys.rewards(job_id("stopped")))) == []
