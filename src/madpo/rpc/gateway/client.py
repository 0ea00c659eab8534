"""Async client of the gateway: datasets, models, jobs and tokens as `madpo.types` values."""

from madpo.rpc.gateway.access import AccessCalls
from madpo.rpc.gateway.datasets import DatasetCalls
from madpo.rpc.gateway.jobs import JobCalls
from madpo.rpc.gateway.models import ModelCalls


class GatewayClient(DatasetCalls, ModelCalls, JobCalls, AccessCalls):
    """The four services of the gateway behind one channel; see `GatewayCalls` for its arguments."""
