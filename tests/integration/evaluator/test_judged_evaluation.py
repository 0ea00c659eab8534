"""Evaluations with a judge: whole runs on a real store, the judge behind real HTTP."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from madpo.errors import FailedPreconditionError, InvalidArgumentError, OverloadedError, UnavailableError
from madpo.storage import keys
from madpo.storage.artifacts import list_artifacts, open_artifact
from madpo.worker.phase import Interrupted
from tests.chat_endpoint import ChatEndpoint, chat_endpoint
from tests.integration.evaluator.evaluation_site import Site, job_id

KEY = "sk-thekeythatnobodymaysee0123456789"
SAMPLING = {"temperatures": [1.0], "samples_per_prompt": 2, "max_new_tokens": 8}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatEndpoint]:
    """The judge `gpt` of every evaluator."""
    with chat_endpoint() as endpoint:
        judge = {"url": endpoint.url, "model": "big", "concurrency": 1, "outage_s": 0}
        judge |= {"prompt_price": 2.0, "completion_price": 10.0}
        monkeypatch.setenv("MADPO_EVALUATOR_JUDGES", json.dumps({"gpt": judge}))
        monkeypatch.setenv("MADPO_EVALUATOR_JUDGE_KEYS__GPT", KEY)
        yield endpoint


def judged(baseline: str, **judge: Any) -> dict[str, Any]:
    return {"sampling": SAMPLING, "baseline_job_ids": [baseline], "judge": {"name": "gpt", **judge}}


async def base(site: Site) -> str:
    """The evaluation of another model, to be compared with."""
    await site.execute(job_id("base"), {"model": {"model_id": site.reference_id}, "sampling": SAMPLING})
    return job_id("base")


def judgements(site: Site, job: str) -> list[dict[str, Any]]:
    with open_artifact(site.store, job, "judgements.jsonl") as stream:
        return [json.loads(line) for line in stream]


async def test_a_judge_compares_a_policy_with_a_baseline_in_both_orders(site: Site, server: ChatEndpoint) -> None:
    baseline, ours = await base(site), job_id("ours")

    workspace = site.workspace(ours, judged(baseline, samples_per_prompt=2))
    outcome = await site.finish(workspace)

    assert outcome.kind == "succeeded", outcome.reason
    assert outcome.result is not None
    mine, theirs = site.generations(ours), site.generations(baseline)
    lengths = [len(one["response"]) - len(other["response"]) for one, other in zip(mine, theirs, strict=True)]
    expected = [1.0 if length > 0 else 0.0 if length < 0 else 0.5 for length in lengths]
    assert [row["preference"] for row in judgements(site, ours)] == expected
    report = site.report(ours)
    (figures,) = report["results"][0]["judged"].values()
    assert figures["pairs"] == 12 == figures["wins"] + figures["ties"] + figures["losses"]
    assert figures["win_rate"] == pytest.approx(sum(expected) / 12)
    assert figures["win_rate_ci"][0] <= figures["win_rate"] <= figures["win_rate_ci"][1]
    assert figures["agreement"] == 1.0
    # Length decides alone here: at equal length the gap to one half is smaller.
    controlled = figures["length_controlled_win_rate"]
    assert abs(controlled - 0.5) <= abs(figures["win_rate"] - 0.5) + 1e-9
    questions = len(server.seen)
    assert report["judge"] == {
        "name": "gpt",
        "model": "big",
        "questions": questions,
        "prompt_tokens": 100 * questions,
        "completion_tokens": 10 * questions,
        "cost": pytest.approx(questions * (100 * 2.0 + 10 * 10.0) / 1e6),
    }
    assert outcome.result.summary["judge"]["questions"] == questions
    assert outcome.result.summary["results"][0]["judged"][baseline]["win_rate"] == figures["win_rate"]
    assert list(site.store.list(keys.judgements(ours))) == []

    said = workspace.log_path.read_text() + json.dumps(outcome.result.summary)
    for file in list_artifacts(site.store, ours):
        with open_artifact(site.store, ours, file.path) as stream:
            said += stream.read().decode("utf-8", "replace")
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in said


async def test_chosen_responses_are_met_too_and_a_judge_that_prefers_a_place_makes_ties(
    site: Site, server: ChatEndpoint
) -> None:
    server.decide = lambda first, second: "Whatever.\n[[A]]"
    spec = {"prompt_dataset": site.pairs_id, "judge": {"name": "gpt", "against_chosen": True, "max_prompts": 2}}

    await site.execute(job_id("chosen"), spec)

    figures = site.report(job_id("chosen"))["results"][0]["judged"]["chosen"]
    assert (figures["pairs"], figures["ties"], figures["win_rate"]) == (2, 2, 0.5)
    assert (figures["agreement"], figures["first_rate"]) == (0.0, 1.0)
    shown = [body["messages"][1]["content"] for body in server.seen]
    assert sum("\nfilm was good\n" in text for text in shown) == 2


async def test_the_same_response_is_a_tie_that_costs_nothing(site: Site, server: ChatEndpoint) -> None:
    await site.execute(job_id("itself"), {"sampling": SAMPLING})

    await site.execute(job_id("again"), judged(job_id("itself")))

    report = site.report(job_id("again"))
    assert server.requests == report["judge"]["questions"] == 0
    assert report["results"][0]["judged"][job_id("itself")]["ties"] == 6


KILLED_BEHIND_ANSWER = """
import os, signal, sys
from pathlib import Path
from madpo_evaluator.judging.asking import KeptReplies
from madpo_evaluator.run import main

put, kept = KeptReplies.put, []

def put_and_die(self, question, reply):
    put(self, question, reply)
    kept.append(question)
    if len(kept) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

KeptReplies.put = put_and_die
main(Path(sys.argv[1]))
"""


async def test_what_was_answered_before_a_kill_is_not_paid_for_again(site: Site, server: ChatEndpoint) -> None:
    baseline = await base(site)
    await site.execute(job_id("whole"), judged(baseline))
    whole = server.requests
    assert whole > 6

    for attempt, answers in ((1, 3), (2, 2)):
        workspace = site.workspace(job_id("killed"), judged(baseline), attempt=attempt)
        command = [sys.executable, "-c", KILLED_BEHIND_ANSWER, str(workspace.directory), str(answers)]
        assert await site.launch(workspace, command) == -signal.SIGKILL
        workspace.close()
    assert len(list(site.store.list(keys.judgements(job_id("killed"))))) == 5
    outcome = await site.finish(site.workspace(job_id("killed"), judged(baseline), attempt=3))

    assert outcome.kind == "succeeded", outcome.reason
    assert server.requests == 2 * whole
    assert site.report(job_id("killed"))["judge"] == site.report(job_id("whole"))["judge"]
    assert judgements(site, job_id("killed")) == judgements(site, job_id("whole"))


@pytest.mark.parametrize(
    ("fault", "error"), [(503, UnavailableError), ((429, {"Retry-After": "9"}, b""), OverloadedError)]
)
async def test_a_judge_that_is_away_ends_the_attempt_and_the_next_one_goes_on(
    fault: Any, error: type[Exception], site: Site, server: ChatEndpoint
) -> None:
    baseline = await base(site)
    server.faults.extend([None, None, fault])

    with pytest.raises(error, match="judge gpt"):
        await site.execute(job_id("away"), judged(baseline))
    asked = server.requests
    workspace = site.workspace(job_id("away"), judged(baseline), attempt=2)
    await site.execute(job_id("away"), {}, workspace=workspace)

    assert asked == 3
    assert server.requests == 1 + site.report(job_id("away"))["judge"]["questions"]


async def test_a_wrong_key_fails_the_job_and_what_was_drawn_is_kept(site: Site, server: ChatEndpoint) -> None:
    baseline = await base(site)
    server.faults.append(401)

    outcome = await site.run_process(job_id("key"), judged(baseline))

    assert outcome.kind == "failed"
    assert "judge gpt (big) answers HTTP 401" in outcome.reason
    assert "MADPO_EVALUATOR_JUDGE_KEYS__GPT" in outcome.reason
    assert list(site.store.list(keys.generations(job_id("key"))))


async def test_answers_that_cannot_be_read_are_left_out_and_counted(site: Site, server: ChatEndpoint) -> None:
    baseline = await base(site)
    answers = iter(["no idea", "none at all", "[[A]]"])
    server.decide = lambda first, second: next(answers, "[[C]]")

    result = await site.execute(job_id("vague"), judged(baseline))

    (figures,) = site.report(job_id("vague"))["results"][0]["judged"].values()
    assert (figures["unjudged"], figures["pairs"]) == (1, 5)
    assert any("the judge left 1 of 6 pairs without two answers" in warning for warning in result.warnings)
    # The first question was asked twice, and both answers are paid for.
    assert site.report(job_id("vague"))["judge"]["prompt_tokens"] == 100 * server.requests


async def test_a_judge_that_never_answers_to_the_point_fails_the_job(site: Site, server: ChatEndpoint) -> None:
    baseline = await base(site)
    server.decide = lambda first, second: "As a language model"

    with pytest.raises(FailedPreconditionError, match=r"no answer of judge gpt \(big\) could be read.*As a language"):
        await site.execute(job_id("never"), judged(baseline))


async def test_a_run_that_is_to_stop_does_not_wait_for_a_judge_to_come_back(
    site: Site, server: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = await base(site)
    judge = {"url": server.url, "model": "big", "outage_s": 100_000}
    monkeypatch.setenv("MADPO_EVALUATOR_JUDGES", json.dumps({"gpt": judge}))
    server.faults.extend([(503, {"Retry-After": "50000"}, b"")] * 1000)
    workspace = site.workspace(job_id("stopped"), judged(baseline))

    running = asyncio.ensure_future(site.execute(job_id("stopped"), {}, workspace=workspace))
    while not server.requests:
        await asyncio.sleep(0.02)
    workspace.request_stop("shutdown")

    with pytest.raises(Interrupted):
        await running


async def test_a_judge_that_this_evaluator_lacks_is_named_before_anything_is_done(
    site: Site, server: ChatEndpoint
) -> None:
    with pytest.raises(FailedPreconditionError, match="no judge 'claude'; it has gpt"):
        await site.execute(job_id("unknown"), {"judge": {"name": "claude", "against_chosen": True}})
    with pytest.raises(InvalidArgumentError, match="holds no preference pairs"):
        await site.execute(job_id("no-pairs"), {"judge": {"name": "gpt", "against_chosen": True}})
    assert server.requests == 0


async def test_many_questions_are_on_their_way_at_once_but_no_more_than_allowed(
    site: Site, server: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = await base(site)
    monkeypatch.setenv(
        "MADPO_EVALUATOR_JUDGES", json.dumps({"gpt": {"url": server.url, "model": "big", "concurrency": 3}})
    )

    await site.execute(job_id("many"), judged(baseline, samples_per_prompt=2))

    assert 1 <= server.most_at_once <= 3
    assert site.report(job_id("many"))["judge"]["cost"] is None
