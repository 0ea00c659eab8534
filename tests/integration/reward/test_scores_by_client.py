"""Scores by SDK and command line: for rows of any source, named by row where they have none, and on to an upload."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer import BadParameter
from typer.main import get_command

from madpo.errors import InvalidArgumentError, NonFiniteError, NotFoundError, RevisionMismatchError, UnavailableError
from madpo.types import JobKind, PreferencePair, ScoredPair
from madpo_client import Client
from madpo_client.cli import app
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import TOKEN, Gateway, eventually
from tests.integration.reward.service import PAIRS, Models, Start
from tests.integration.reward.test_scores_by_gateway import BAD, gateway_of, settings

__all__ = ["settings"]

ROWS: list[dict[str, Any]] = [
    {"prompt": pair.prompt, "chosen": f"{pair.chosen} good", "rejected": f"{pair.rejected} bad"} for pair in PAIRS
]
Ask = Callable[[Callable[[Client], Any]], Any]


@asynccontextmanager
async def asked(gateway: Gateway) -> Any:
    """Runs what is to be done with a client, in a thread beside the servers' loop."""
    client = await asyncio.to_thread(Client, gateway.target, token=TOKEN)

    async def ask(work: Callable[[Client], Any]) -> Any:
        return await asyncio.to_thread(work, client)

    yield ask
    await asyncio.to_thread(client.close)


def pairs_of(rows: Iterable[Mapping[str, Any]]) -> list[PreferencePair]:
    return [PreferencePair(row["prompt"], row["chosen"], row["rejected"]) for row in rows]


def scores(scored: Iterable[Any]) -> list[ScoredPair]:
    return [each.score for each in scored]


async def test_rows_of_any_source_have_the_scores_of_the_reward_service(
    settings: GatewaySettings, start: Start, models: Models, tmp_path: Path
) -> None:
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("\n".join(map(json.dumps, ROWS)))
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    sources: list[Callable[[], Any]] = [
        lambda: ROWS,
        lambda: iter(ROWS),
        lambda: (row for row in ROWS),
        lambda: pd.DataFrame(ROWS),
        lambda: {"train": ROWS, "test": []},
        lambda: lines,
        lambda: str(table),
        lambda: [lines],
    ]
    async with start() as replica, gateway_of(settings, replica.port) as gateway, asked(gateway) as ask:
        direct = await replica.client.score_pairs(models.good, pairs_of(ROWS))
        for source in sources:
            given = source()
            reading = {"split": "train"} if isinstance(given, dict) else {}
            found = await ask(lambda it: list(it.score_pairs(models.good, given, **reading)))  # noqa: B023
            assert scores(found) == direct
            assert [(each.pair.row, each.given) for each in found] == list(enumerate(ROWS, start=1))
        info = await replica.client.get_reward_model(models.good)
        assert (await ask(lambda it: it.score_pairs("good", ROWS[:1]).reward_model)) == info


async def test_responses_and_lists_have_one_score_each_however_they_are_batched(
    settings: GatewaySettings, start: Start, models: Models
) -> None:
    texts = [(row["prompt"], row["chosen"]) for row in ROWS]
    completions = [{"prompt": prompt, "completion": text} for prompt, text in texts]
    responses = [{"prompt": prompt, "response": text, "note": 1} for prompt, text in texts]
    lists = [
        {"prompt": f"{prompt} {number}", "responses": [f"{text} {each}" for each in ("good", "bad", "film")]}
        for number in range(5)
        for prompt, text in texts
    ]
    scored_lists = [{**each, "scores": [1.0, 1.0, 1.0]} for each in lists[:2]]
    flat = [(each["prompt"], text) for each in lists for text in each["responses"]]
    async with start() as replica, gateway_of(settings, replica.port) as gateway, asked(gateway) as ask:
        score = replica.client.score_responses
        for rows in (completions, responses):
            found = await ask(lambda it: list(it.score_responses(models.good, rows)))  # noqa: B023
            assert [each.scores for each in found] == [(one,) for one in await score(models.good, texts)]
        found = await ask(lambda it: list(it.score_responses(models.good, lists)))
        assert [len(each.scores) for each in found] == [3] * len(lists)
        assert [one for each in found for one in each.scores] == await score(models.good, flat)
        again = await ask(lambda it: list(it.score_responses(models.good, scored_lists)))
        assert [each.scores for each in again] == [each.scores for each in found[:2]]


async def test_what_cannot_be_scored_is_named_by_its_row(
    settings: GatewaySettings, start: Start, models: Models
) -> None:
    empty = {**ROWS[0], "rejected": ""}
    large = {"prompt": "the", "chosen": "x" * 3000, "rejected": "y"}
    nan = {"prompt": BAD.prompt, "chosen": BAD.chosen, "rejected": BAD.rejected}
    wrong: list[tuple[list[Any], type[Exception], str]] = [
        ([*ROWS[:4], empty], InvalidArgumentError, "row 5.rejected"),
        ([*ROWS[:4], {"prompt": "only"}], InvalidArgumentError, "row 5: is a prompt row while row 1 is a preference"),
        ([ROWS[0], {**ROWS[1], "chosen": float("nan")}], InvalidArgumentError, "row 2 is no JSON object: chosen"),
        ([ROWS[0], large], InvalidArgumentError, "row 2: a row is at most max_row_bytes (2000 bytes)"),
        ([{"prompt": "the", "completion": "film"}], InvalidArgumentError, "row 1: is no preference pair"),
        ([], InvalidArgumentError, "no rows"),
    ]
    small = {"max_row_bytes": 2000}
    async with start() as replica, gateway_of(settings, replica.port, **small) as gateway, asked(gateway) as ask:
        for rows, kind, text in wrong:
            with pytest.raises(kind) as caught:
                await ask(lambda it: list(it.score_pairs(models.good, rows)))  # noqa: B023
            assert text in str(caught.value)
        good = {"prompt": "the film", "chosen": "was good", "rejected": "was"}
        with pytest.raises(NonFiniteError, match=r"^row 3: "):
            await ask(lambda it: list(it.score_pairs(models.nan_on_bad, [good, good, nan])))
        for rows, text in (
            (ROWS[:1], "row 1: is a preference pair"),
            ([{"prompt": "a"}], "row 1: has no response"),
        ):
            with pytest.raises(InvalidArgumentError) as caught:
                await ask(lambda it: list(it.score_responses(models.good, rows)))  # noqa: B023
            assert text in str(caught.value)


async def test_a_model_that_cannot_score_is_refused_before_any_row_is_read(
    settings: GatewaySettings, start: Start, models: Models
) -> None:
    def rows() -> Iterator[Any]:
        raise AssertionError("a row was read")
        yield

    async with start() as replica, gateway_of(settings, replica.port) as gateway, asked(gateway) as ask:
        with pytest.raises(InvalidArgumentError, match="is a causal_lm model; give a reward model"):
            await ask(lambda it: it.score_pairs(models.causal, ROWS))
        with pytest.raises(InvalidArgumentError, match=r"reward_model\.step"):
            await ask(lambda it: it.score_pairs("job-" + "0" * 32 + "@3", ROWS))
        with pytest.raises(NotFoundError, match="there is no reward model 'nobody'"):
            await ask(lambda it: it.score_pairs("nobody", ROWS))


@pytest.mark.parametrize("changes", [False, True], ids=["same revision", "other revision"])
async def test_a_lost_gateway_is_found_again_and_nothing_scored_by_another_revision(
    settings: GatewaySettings, start: Start, models: Models, unused_tcp_port: int, changes: bool
) -> None:
    rows = [{**row, "prompt": f"{row['prompt']} {number}"} for number in range(25) for row in ROWS]
    fixed = settings.model_copy(update={"port": unused_tcp_port})
    async with start() as replica, start(batch_tokens=512) as changed:
        async with gateway_of(fixed, replica.port) as gateway:
            client = await asyncio.to_thread(Client, gateway.target, token=TOKEN)
            scored = await asyncio.to_thread(client.score_pairs, models.good, rows)
            before = [(await asyncio.to_thread(next, scored)) for _ in range(3)]
        rest = asyncio.create_task(asyncio.to_thread(list, scored))
        async with gateway_of(fixed, (changed if changes else replica).port):
            if changes:
                with pytest.raises(RevisionMismatchError, match="score all rows again"):
                    await rest
            else:
                direct = await replica.client.score_pairs(models.good, pairs_of(rows))
                assert scores([*before, *await rest]) == direct
        await asyncio.to_thread(client.close)


async def test_who_stops_early_has_the_stream_ended(settings: GatewaySettings, start: Start, models: Models) -> None:
    def stop(client: Client) -> Any:
        with client.score_pairs(models.good, (ROWS[number % 24] for number in range(10**9))) as scored:
            return next(scored)

    async with start() as replica, gateway_of(settings, replica.port) as gateway, asked(gateway) as ask:
        first = await ask(stop)
        assert first.given == ROWS[0]
        assert first.reward_margin == first.score.chosen_reward - first.score.rejected_reward
        await eventually(lambda: gateway.registry.get_sample_value("madpo_gateway_scoring_streams") == 0)


async def command(gateway: Gateway, tmp_path: Path, *words: str) -> None:
    """Runs `madpo` in a thread; an error of ours is raised."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    arguments = ["--server", gateway.target, "--token-file", str(token), *words]
    await asyncio.to_thread(get_command(app).main, arguments, standalone_mode=False)


async def test_a_scored_file_is_uploaded_with_its_margins(
    settings: GatewaySettings, start: Start, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    rows = [*ROWS[:-1], {**ROWS[-1], "chosen": "good " * 200}]
    old = {"margin": 99.0, "score_chosen": 99.0, "score_rejected": 0.0, "weight": 0.5, "note": "kept", "id": "é"}
    given.write_text("\n".join(json.dumps({**row, **old}) for row in rows))
    async with start() as replica, gateway_of(settings, replica.port) as gateway, asked(gateway) as ask:
        await command(gateway, tmp_path, "score", str(given), "--reward-model", models.good, "--out", str(out))
        line = capsys.readouterr().out
        direct = await replica.client.score_pairs(models.good, pairs_of(rows))
        dataset = await ask(lambda it: it.datasets.upload(out))
        stored = await ask(lambda it: it.datasets.read_rows(dataset.dataset_id, range(1, 25)))
        words = ("score", str(given), "--reward-model", models.good, "--json")
        await command(gateway, tmp_path, *words)
        summary = json.loads(capsys.readouterr().out)
        await command(gateway, tmp_path, *words, "--out", "-")
        piped = capsys.readouterr()
    written = [json.loads(text) for text in out.read_text().splitlines()]
    assert [each.pop("reward_margin") for each in written] == [each.reward_margin for each in direct]
    rewards = [(each.pop("chosen_reward"), each.pop("rejected_reward")) for each in written]
    assert rewards == [(each.chosen_reward, each.rejected_reward) for each in direct]
    assert written == [{**row, "weight": 0.5, "note": "kept", "id": "é"} for row in rows]
    assert [each.reward_margin for each in stored] == [each.reward_margin for each in direct]
    assert [each.weight for each in stored] == [0.5] * 24
    contradicted = sum(each.reward_margin < 0 for each in direct) / 24
    truncated = sum(each.chosen_truncated or each.rejected_truncated for each in direct)
    assert 0 < truncated < 24
    assert 0 < contradicted < 1
    mean = sum(each.reward_margin for each in direct) / 24
    assert summary == {
        "reward_model": models.good,
        "revision": summary["revision"],
        "rows": 24,
        "pairs": 24,
        "mean_reward_margin": mean,
        "contradicted_ratio": contradicted,
        "truncated": truncated,
    }
    assert line == (
        f"24 pairs by {models.good}: mean margin {mean:+.4g}, {contradicted:.1%} contradicted,"
        f" {truncated} longer than 128 tokens\n"
    )
    assert piped.out == out.read_text()
    assert json.loads(piped.err) == summary
    assert not list(tmp_path.glob("*.partial"))


async def test_scored_lists_and_responses_are_uploaded_too(
    settings: GatewaySettings, start: Start, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    lists = [{"prompt": "the film", "responses": ["was good", "was", "bad"], "id": "one", "scores": None}]
    chats = [
        {
            "prompt": [{"role": "user", "content": "the film"}],
            "responses": [[{"role": "assistant", "content": text}] for text in ("was good", "was")],
        }
    ]
    nemo = [
        {
            "context": "the",
            "completions": [{"rank": n, "completion": text} for n, text in enumerate(("film", "good", "bad"))],
            "weight": 2,
        }
    ]
    async with start() as replica, gateway_of(settings, replica.port) as gateway, asked(gateway) as ask:
        for rows, options in (
            (lists, ()),
            (chats, ()),
            (nemo, ("--lists", "keep")),
            (nemo, ("--lists", "pairs")),
        ):
            given.write_text("\n".join(map(json.dumps, rows)))
            await command(gateway, tmp_path, "score", str(given), "--reward-model", "good", "--out", str(out), *options)
            dataset = await ask(lambda it: it.datasets.upload(out))
            stored = await ask(lambda it: it.datasets.read_rows(dataset.dataset_id, range(1, dataset.rows + 1)))  # noqa: B023
            if options == ("--lists", "pairs"):
                assert [each.weight for each in stored] == [2.0, 2.0, 2.0]
                direct = await replica.client.score_pairs(models.good, stored)
                assert [each.reward_margin for each in stored] == [each.reward_margin for each in direct]
                continue
            (kept,) = stored
            direct = await replica.client.score_responses(models.good, [(kept.prompt, each) for each in kept.responses])
            assert kept.scores == tuple(each.reward for each in direct)
        capsys.readouterr()
        given.write_text(json.dumps({"prompt": "the film", "response": "was good"}))
        await command(gateway, tmp_path, "score", str(given), "--reward-model", "good", "--out", str(out))
        (one,) = await replica.client.score_responses(models.good, [("the film", "was good")])
        assert json.loads(out.read_text()) == {"prompt": "the film", "response": "was good", "reward": one.reward}
        assert capsys.readouterr().out.startswith(f"1 responses in 1 rows by {models.good}: mean reward")


async def test_rows_scored_before_a_row_that_cannot_be_are_kept_apart(
    settings: GatewaySettings, start: Start, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    many = [{**row, "prompt": f"{row['prompt']} {number}"} for number in range(25) for row in ROWS]
    given.write_text("\n".join(map(json.dumps, [*many, {**ROWS[0], "chosen": ""}])))
    async with start() as replica, gateway_of(settings, replica.port) as gateway:
        with pytest.raises(InvalidArgumentError, match=r"row 601\.chosen"):
            await command(gateway, tmp_path, "score", str(given), "--reward-model", "good", "--out", str(out))
    assert not out.exists()
    kept = (tmp_path / "out.jsonl.partial").read_text().splitlines()
    assert 0 < len(kept) <= 600
    assert f"what was scored so far is in {out}.partial" in capsys.readouterr().err


async def test_a_stored_dataset_is_scored_by_a_job(
    settings: GatewaySettings, start: Start, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start() as replica, gateway_of(settings, replica.port) as gateway, asked(gateway) as ask:
        dataset = await ask(lambda it: it.datasets.upload(ROWS, name="stored-pairs"))
        words = ("score", "stored-pairs", "--reward-model", "good")
        await command(gateway, tmp_path, *words, "--no-wait", "--name", "live")
        job = await ask(lambda it: it.jobs.get(capsys.readouterr().out.strip()))
        with pytest.raises(BadParameter, match="of the options only"):
            await command(gateway, tmp_path, *words, "--out", "x.jsonl")
        with pytest.raises(BadParameter, match="are for jobs"):
            await command(gateway, tmp_path, "score", "rows.jsonl", *words[2:], "--no-wait")
    assert (job.job.kind, job.job.display_name) == (JobKind.SCORING, "live")
    assert job.job.spec["dataset"]["dataset_id"] == dataset.dataset_id
    assert job.job.spec["reward_model"]["model_id"] == models.good


async def test_without_a_gateway_nothing_is_written(tmp_path: Path, unused_tcp_port: int) -> None:
    given, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    given.write_text(json.dumps(ROWS[0]))
    arguments = ["--server", f"127.0.0.1:{unused_tcp_port}", "score", str(given), "--reward-model", "model-" + "0" * 32]
    with pytest.raises(UnavailableError):
        await asyncio.to_thread(get_command(app).main, [*arguments, "--out", str(out)], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
