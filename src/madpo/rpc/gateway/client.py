"""Async client of the gateway: datasets, models, jobs and tokens as `madpo.types` values."""

from madpo.rpc.gateway.access import AccessCalls
from madpo.rpc.gateway.datasets import DatasetCalls
from madpo.rpc.gateway.jobs import JobCalls
from madpo.rpc.gateway.models import ModelCalls
from madpo.rpc.gateway.retention import RetentionCalls
from madpo.rpc.gateway.scoring import ScoringCalls
from madpo.rpc.gateway.store import StoreCalls


class GatewayClient(DatasetCalls, ModelCalls, JobCalls, AccessCalls, RetentionCalls, ScoringCalls, StoreCalls):
    """All services of the gateway behind one channel; see `GatewayCalls` for its arguments."""
