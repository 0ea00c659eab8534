"""Async client of the gateway: datasets, models and jobs as `madpo.types` values."""

from madpo.rpc.gateway.datasets import DatasetCalls
from madpo.rpc.gateway.jobs import JobCalls
from madpo.rpc.gateway.models import ModelCalls


class GatewayClient(DatasetCalls, ModelCalls, JobCalls):
    """The three services of the gateway behind one channel; see `GatewayCalls` for its arguments."""
