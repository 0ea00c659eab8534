"""Scores end to end: real server, real client, real (tiny) reward models, a real object store."""

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from madpo.data.order import Schedule
from madpo.data.tokenize import encode_response
from madpo.jobs.methods import MarginParameters
from madpo.models.scores import reward_scores
from madpo.rpc.reward_client import RewardClient
from madpo.storage.local import LocalStore
from madpo.types import ChatOptions, Message, PreferencePair, ToolCall, content_digest
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.margins.remote import RemoteMargins
from tests.integration.reward.service import PAIRS, POSITIONS, TOKEN, WORDS, Models, Start, pair_rewards


def plain_score(models: Models, prompt: Any, response: Any, *, last_tokens: int = 0) -> float:
    """What transformers itself gives one text, unpadded and alone; of a longer one BOS and its last tokens."""
    model = LlamaForSequenceClassification.from_pretrained(models.directory).eval()
    encoded = encode_response(models.tokenizer, prompt, response)
    ids = [*encoded.prompt_ids, *encoded.response_ids]
    if last_tokens:
        assert ids[0] == models.tokenizer.bos_token_id
        ids = [ids[0], *ids[1 - last_tokens :]]
    with torch.inference_mode():
        return float(model(torch.tensor([ids])).logits[0, 0])


async def test_scores_are_those_of_a_plain_transformers_forward_pass(start: Start, models: Models) -> None:
    chat = PreferencePair(
        prompt=(Message("user", "the film"),),
        chosen=(Message("assistant", "was good"),),
        rejected=(Message("assistant", "was ."),),
    )
    async with start() as replica:
        scored = await replica.client.score_pairs(models.good, [*PAIRS[:6], chat])

    for pair, score in zip([*PAIRS[:6], chat], scored, strict=True):
        assert score.pair_id == pair.pair_id
        assert score.chosen_reward == pytest.approx(plain_score(models, pair.prompt, pair.chosen), abs=1e-5)
        assert score.rejected_reward == pytest.approx(plain_score(models, pair.prompt, pair.rejected), abs=1e-5)
        assert score.chosen_tokens == len(encode_response(models.tokenizer, pair.prompt, pair.chosen))
        assert not score.chosen_truncated


async def test_a_pair_with_tools_and_template_arguments_is_scored_under_its_own_id(
    start: Start, models: Models
) -> None:
    """The toy template writes neither, so that the score is that of a chat without them; its id is another."""
    calling = Message("assistant", "was good", (ToolCall("look", '{"at":"film"}', "c1"),))
    pair = PreferencePair((Message("user", "the film"),), (calling,), (Message("assistant", "was ."),))
    options = ChatOptions('[{"type":"function","function":{"name":"look"}}]', '{"mood":"good"}')
    given = replace(pair, options=options)
    async with start() as replica:
        plain, scored = await replica.client.score_pairs(models.good, [pair, given])
        (response,) = await replica.client.score_responses(
            models.good, [(given.prompt, given.chosen)], options=[options]
        )

    assert (plain.pair_id, scored.pair_id) == (pair.pair_id, given.pair_id)
    assert plain.pair_id != scored.pair_id
    assert (plain.chosen_reward, plain.rejected_reward) == (scored.chosen_reward, scored.rejected_reward)
    assert response.response_id == content_digest(given.prompt, given.chosen, options=options)
    assert response.reward == scored.chosen_reward


@pytest.mark.promise("T4")
@pytest.mark.parametrize("batch_tokens", [0, 512], ids=["shared prompts", "padded rows"])
async def test_scores_are_the_same_bits_alone_in_any_company_and_on_another_replica(
    start: Start, models: Models, batch_tokens: int
) -> None:
    def texts_of(pair: PreferencePair) -> list[Any]:
        return [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]

    options = {"cache_entries": 0, "batch_tokens": batch_tokens}
    async with start(**options) as replica, start(**options) as another:
        together = pair_rewards(await replica.client.score_pairs(models.good, PAIRS))
        alone = [await replica.client.score_pairs(models.good, [pair]) for pair in PAIRS]
        crowded = await asyncio.gather(
            *[another.client.score_pairs(models.good, PAIRS[n::5][::-1]) for n in range(5)],
            another.client.score_pairs(models.good, [PreferencePair(".", "good", "bad " * n) for n in range(1, 30)]),
        )
        responses = await another.client.score_responses(models.good, texts_of(PAIRS[3]))
        revisions = {(await server.client.get_reward_model(models.good)).revision for server in (replica, another)}

    assert pair_rewards(itertools.chain.from_iterable(alone)) == together
    others = pair_rewards(itertools.chain.from_iterable(crowded))
    assert {pair_id: others[pair_id] for pair_id in together} == together
    assert tuple(score.reward for score in responses) == together[PAIRS[3].pair_id]
    assert len(set(together.values())) == len(PAIRS)
    assert len(revisions) == 1


async def test_every_padded_forward_pass_has_a_shape_of_the_ladder_and_some_padding(
    start: Start, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, unpadded = set(), []

    def recorded(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(input_ids.shape))
        unpadded.append(bool(attention_mask.all()))
        return reward_scores(model, input_ids, attention_mask)

    endless = [("", " ".join(itertools.islice(itertools.cycle(WORDS), n, n + 2 * POSITIONS))) for n in range(8)]
    async with start(max_tokens=96, batch_tokens=400) as replica:
        await replica.client.get_reward_model(models.good)
        monkeypatch.setattr("madpo_reward.layouts.reward_scores", recorded)
        await replica.client.score_pairs(models.good, PAIRS)
        filled = await replica.client.score_responses(models.good, endless)

    assert shapes == {(12, 32), (4, 64), (4, 96)}
    assert not any(unpadded)
    assert {(score.tokens, score.truncated) for score in filled} == {(95, True)}


async def test_long_texts_lose_the_start_of_the_prompt_and_are_flagged(start: Start, models: Models) -> None:
    prompt, response = "the film was " * 60, "good ."
    async with start() as replica:
        info = await replica.client.get_reward_model(models.good)
        (scored,) = await replica.client.score_responses(models.good, [(prompt, response)])

    assert info.max_tokens == POSITIONS
    assert (scored.tokens, scored.truncated) == (info.max_tokens, True)
    kept = plain_score(models, prompt, response, last_tokens=info.max_tokens)
    assert scored.reward == pytest.approx(kept, abs=1e-5)


async def test_known_texts_are_answered_from_the_cache(start: Start, models: Models) -> None:
    async with start() as replica:
        first = await replica.client.score_pairs(models.good, PAIRS[1:5])
        forwards = replica.forwards
        again = await replica.client.score_pairs(models.good, PAIRS[1:5])
        assert replica.forwards == forwards > 0
        await replica.client.score_pairs(models.other, PAIRS[1:5])

        assert replica.forwards > forwards
        assert replica.count("madpo_reward_responses_total", source="cache") == 8
        assert replica.count("madpo_reward_responses_total", source="model") == 16
        assert replica.count("madpo_reward_pairs_total", outcome="scored") == 12
    assert again == first


async def test_a_second_epoch_and_a_second_job_compute_no_score(start: Start, models: Models, tmp_path: Path) -> None:
    schedule = Schedule.plan(rows=len(PAIRS), batch_size=4, seed=0, epochs=3, max_steps=None)
    scores = {content_digest(pair.prompt, text) for pair in PAIRS for text in (pair.chosen, pair.rejected)}

    async with start() as replica:
        info = await replica.client.get_reward_model(models.good)

        async def train(job: int) -> list[Any]:
            margins = RemoteMargins(
                PAIRS,
                schedule,
                connect=lambda: RewardClient(f"127.0.0.1:{replica.port}", token=TOKEN),
                model_id=models.good,
                revision=info.revision,
                journal=MarginJournal(LocalStore(tmp_path / "journals"), job_id=f"job-{job:032}", attempt=1),
                parameters=MarginParameters(reward_model={"model_id": models.good}),
                interrupted=lambda: False,
            )
            margins.start(0)
            taken = [await asyncio.to_thread(margins.take, step) for step in range(schedule.total_steps)]
            await asyncio.to_thread(margins.close)
            return taken

        first = await train(1)
        computed = replica.count("madpo_reward_responses_total", source="model")
        served = replica.count("madpo_reward_pairs_total", outcome="scored")
        second = await train(2)

        assert computed == replica.count("madpo_reward_responses_total", source="model") == len(scores)
        assert (served, replica.count("madpo_reward_pairs_total", outcome="scored")) == (len(PAIRS), 2 * len(PAIRS))
    assert first == second
