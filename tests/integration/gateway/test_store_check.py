"""What the gateway says of its store."""

from madpo.rpc import convert
from madpo.types import StoreCheckProgress, StoreFinding
from madpo.v1 import store_service_pb2 as pb
from tests.integration.gateway.service import Gateway


async def check(gateway: Gateway, *, repair: bool = False) -> tuple[list[StoreFinding], StoreCheckProgress]:
    messages = await gateway.collect(gateway.store_service.CheckStore, pb.CheckStoreRequest(repair=repair))
    said = [convert.store_check_from_proto(message) for message in messages]
    assert isinstance(said[-1], StoreCheckProgress)
    return [each for each in said if isinstance(each, StoreFinding)], said[-1]


async def test_a_whole_store_is_read_to_the_last_byte(gateway: Gateway) -> None:
    await gateway.ready_job()
    infos = [info for info in gateway.store.list("") if not info.key.startswith("audit/")]

    findings, progress = await check(gateway)

    assert findings == []
    assert progress.objects >= len(infos) > 5
    assert progress.size_bytes >= sum(info.size_bytes for info in infos)


async def test_each_damaged_object_is_named_and_what_is_made_again_is_removed_on_demand(gateway: Gateway) -> None:
    await gateway.ready_job()
    weights = next(info.key for info in gateway.store.list("models/") if info.key.endswith(".safetensors"))
    manifest = f"reference_logps/{'d' * 32}/00000/manifest.json"
    for key in (weights, manifest):
        gateway.store.put(key, b"damaged")

    findings, _ = await check(gateway)
    assert [(each.key, each.verdict) for each in findings] == [(weights, "damaged"), (manifest, "damaged")]
    findings, _ = await check(gateway, repair=True)
    assert [(each.key, each.repaired) for each in findings] == [(weights, False), (manifest, True)]
    findings, _ = await check(gateway)
    assert [each.key for each in findings] == [weights]
