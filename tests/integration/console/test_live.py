"""Jobs that are looked at live."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from madpo.types import JobEvent
from madpo_client import Client, JobHandle
from madpo_console.callers import Asker
from madpo_console.following import Following
from tests.integration.console.site import Site


@pytest.fixture(scope="module")
def ended(client: Client, base: str, other_pairs_file: Path) -> JobHandle:
    pairs = client.datasets.upload(other_pairs_file)
    job = client.jobs.train_policy(model=base, dataset=pairs, method="dpo", training={"max_tokens": 64})
    job.wait(timeout_s=300)
    return job


@pytest.fixture
def waiting(client: Client, base: str, other_pairs_file: Path) -> Any:
    """A job that goes on for as long as the test."""
    pairs = client.datasets.upload(other_pairs_file)
    training = {"max_tokens": 64, "epochs": 4000}
    job = client.jobs.train_policy(model=base, dataset=pairs, method="dpo", training=training)
    yield job
    job.cancel()


def lines(text: str, field: str) -> list[str]:
    return [line.removeprefix(f"{field}: ") for line in text.splitlines() if line.startswith(f"{field}: ")]


def test_events_come_as_they_are_kept_and_go_on_behind_the_last(site: Site, ended: JobHandle) -> None:
    whole = site.ask("GET", f"/api/jobs/{ended.id}/events").text
    cursors = lines(whole, "id")
    headers = {"Authorization": f"Bearer {site.token}", "Last-Event-ID": cursors[1]}
    rest = site.ask("GET", f"/api/jobs/{ended.job.display_name}/events", headers=headers).text

    assert whole.endswith("event: over\ndata: {}\n\n")
    assert cursors == [event.cursor for event in ended.events()]
    assert lines(rest, "id") == cursors[2:]
    assert json.loads(lines(whole, "data")[0])["type"] == "state"


def test_curves_are_those_of_the_training(site: Site, ended: JobHandle) -> None:
    found = site.ask("GET", f"/api/jobs/{ended.id}/curves").json()
    thin = site.ask("GET", f"/api/jobs/{ended.id}/curves?points=2").json()

    rows = [json.loads(line) for line in ended.read_artifact("metrics.jsonl").splitlines()]
    assert found["steps"] == [row["step"] for row in rows] == [1, 2]
    assert found["series"]["loss"] == [row["loss"] for row in rows]
    assert thin["steps"] == [1, 2]


async def test_many_viewers_are_one_watch_which_ends_with_the_last(
    site: Site, client: Client, waiting: JobHandle
) -> None:
    following = Following()
    asking = Asker(site.token, client, client.access.caller(), known_at=0.0)

    everybody_looks = asyncio.Barrier(5)

    async def first_event() -> JobEvent | None:
        async with aclosing(following.events(waiting.id, asking=asking)) as events:
            event = await anext(events)
            await everybody_looks.wait()
            assert following.watches == 1
            await everybody_looks.wait()
            return event

    async with asyncio.timeout(60):
        seen = await asyncio.gather(*(first_event() for _ in range(5)))
    assert len({event.cursor for event in seen if event is not None}) == 1
    assert following.watches == 0

    async def look_on() -> None:
        async with aclosing(following.events(waiting.id, asking=asking)) as events:
            async for _ in events:
                looks.set()

    looks = asyncio.Event()
    viewer = asyncio.create_task(look_on())
    await looks.wait()
    viewer.cancel()
    await asyncio.wait({viewer})
    assert following.watches == 0
    await following.close()


def test_a_revoked_token_sees_no_more_of_a_job_that_others_look_at(
    site: Site, client: Client, waiting: JobHandle
) -> None:
    _, secret = client.access.create_token("viewer", role="read")
    path = f"/api/jobs/{waiting.id}/events"
    headers = {"Authorization": f"Bearer {secret}"}
    with site.sent("GET", path) as other, site.sent("GET", path, headers=headers) as viewed:
        assert (other.status, viewed.status, viewed.readline()[:3]) == (200, 200, b"id:")
        client.access.revoke_token("viewer")
        try:
            while viewed.readline():  # until the stream is cut
                pass
        except OSError:
            pass
        assert other.readline()[:3] == b"id:"
    assert site.ask("GET", path, headers=headers).status == 401
