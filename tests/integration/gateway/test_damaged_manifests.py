"""Models and datasets whose manifest is damaged or of a newer version: named, left out, and in nobody's way."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from madpo.storage import documents, keys
from madpo.v1 import dataset_service_pb2, model_service_pb2
from madpo_gateway.retention_policy import DAY_S
from tests.damage import DAMAGES
from tests.integration.gateway.service import COMPLETIONS, PAIRS, REWARD_CONFIG, Gateway, refusal
from tests.integration.gateway.test_deletion import delete_dataset, delete_model
from tests.integration.gateway.test_retention import apply

Damage = Callable[[bytes], bytes]


def of_another_version(data: bytes) -> bytes:
    body = documents.unseal(data, key="manifest", sealed_always=True)
    return documents.seal(body, version=2)


def without_its_name(data: bytes) -> bytes:
    body = documents.unseal(data, key="manifest", sealed_always=True)
    del body["metadata"]["display_name"]
    return documents.seal(body, version=None)


def of_an_unknown_kind(data: bytes) -> bytes:
    body = documents.unseal(data, key="manifest", sealed_always=True)
    return documents.seal({**body, "metadata": {**body["metadata"], "kind": "arguments"}}, version=None)


def spoil(gateway: Gateway, prefix: str, damage: Damage = DAMAGES[0]) -> str:
    key = f"{prefix}/{keys.MANIFEST}"
    gateway.store.put(key, damage(gateway.store.get(key)))
    return key


async def models(gateway: Gateway, **page: Any) -> Any:
    return await gateway.ask(gateway.models.ListModels, model_service_pb2.ListModelsRequest(**page))


async def datasets(gateway: Gateway, **page: Any) -> Any:
    return await gateway.ask(gateway.datasets.ListDatasets, dataset_service_pb2.ListDatasetsRequest(**page))


def said(page: Any) -> list[tuple[str, str]]:
    assert all(finding.key in finding.detail for finding in page.unreadable)
    return [(finding.key, finding.verdict) for finding in page.unreadable]


@pytest.mark.parametrize("damage", [*DAMAGES, without_its_name, of_another_version])
async def test_one_model_that_cannot_be_read_keeps_no_other_out_of_the_list(
    gateway: Gateway, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = [(await gateway.upload_model(weights=number)).model.model_id for number in (1, 2)]
    key = spoil(gateway, keys.model(damaged), damage)

    with caplog.at_level(logging.ERROR):
        page = await models(gateway)

    assert [model.model_id for model in page.models] == [whole]
    assert said(page) == [(key, "newer" if damage is of_another_version else "damaged")]
    assert [getattr(record, "what", None) for record in caplog.records] == [keys.model(damaged)]


@pytest.mark.parametrize("damage", [*DAMAGES, without_its_name, of_another_version, of_an_unknown_kind])
async def test_one_dataset_that_cannot_be_read_keeps_no_other_out_of_the_list(gateway: Gateway, damage: Damage) -> None:
    whole, damaged = [(await gateway.upload_dataset(rows)).dataset.dataset_id for rows in (PAIRS, COMPLETIONS)]
    key = spoil(gateway, keys.dataset(damaged), damage)

    page = await datasets(gateway)

    assert [dataset.dataset_id for dataset in page.datasets] == [whole]
    is_newer = damage in (of_another_version, of_an_unknown_kind)
    assert said(page) == [(key, "newer" if is_newer else "damaged")]


async def test_each_page_names_its_own(gateway: Gateway) -> None:
    ids = [(await gateway.upload_model(weights=number)).model.model_id for number in (1, 2, 3, 4)]
    spoiled = {spoil(gateway, keys.model(model_id)) for model_id in ids[1:3]}
    found, named, token = [], [], ""
    while True:
        page = await models(gateway, page_size=1, page_token=token)
        found += [model.model_id for model in page.models]
        named += [key for key, _ in said(page)]
        if not (token := page.next_page_token):
            break

    assert set(found) == {ids[0], ids[3]}
    assert len(named) == 2
    assert set(named) == spoiled


async def test_retention_goes_on_with_the_others(gateway: Gateway) -> None:
    whole, damaged = [(await gateway.upload_dataset(rows)).dataset.dataset_id for rows in (PAIRS, COMPLETIONS)]
    spoil(gateway, keys.dataset(damaged))

    assert await apply(gateway, {"datasets": {"days": 30}}, later_s=31 * DAY_S) == [f"dataset {whole}"]


async def test_what_is_damaged_can_be_deleted_and_is_mended_by_another_upload(gateway: Gateway) -> None:
    model, dataset = (await gateway.upload_model()).model, (await gateway.upload_dataset(PAIRS)).dataset
    spoil(gateway, keys.model(model.model_id))
    spoil(gateway, keys.dataset(dataset.dataset_id))

    assert (await gateway.upload_model()).created
    assert (await models(gateway)).models[0].model_id == model.model_id

    spoil(gateway, keys.model(model.model_id))
    await delete_model(gateway, model.model_id)
    await delete_dataset(gateway, dataset.dataset_id)
    assert gateway.stored() == []
    assert (await refusal(delete_model(gateway, model.model_id))).message == f"no model {model.model_id}"


async def test_what_is_damaged_and_needed_stays_as_it_is(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    job = await gateway.queue.get(job_id)
    model_id = job.spec["model"]["model_id"]
    spoil(gateway, keys.model(model_id))
    before = gateway.stored()

    refused = await refusal(delete_model(gateway, model_id))

    assert (refused.code, job_id in refused.message) == ("FAILED_PRECONDITION", True)
    assert gateway.stored() == before


async def test_what_may_be_an_adapter_of_a_model_keeps_it_until_it_is_mended_or_gone(gateway: Gateway) -> None:
    base = (await gateway.upload_model(REWARD_CONFIG)).model.model_id
    strange = [(await gateway.upload_model(weights=number)).model.model_id for number in (2, 3)]
    damaged = [spoil(gateway, keys.model(model_id)) for model_id in strange]

    refused = await refusal(delete_model(gateway, base))

    assert refused.code == "FAILED_PRECONDITION"
    assert min(damaged) in refused.message
    for model_id in [*strange, base]:
        await delete_model(gateway, model_id)
    assert gateway.stored() == []
