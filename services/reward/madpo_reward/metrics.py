"""What the reward service counts."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from madpo.errors import DeadlineExceededError, InvalidArgumentError, OverloadedError

_TOKEN_BUCKETS = tuple(2**power for power in range(5, 18))
_RESPONSE_BUCKETS = tuple(2**power for power in range(10))
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

OUTCOMES = ("scored", "refused", "invalid", "dropped", "failed")
"""What may become of the pairs of a request."""
SOURCES = ("model", "cache")
"""Where a score comes from."""
PHASES = ("queue", "tokenize", "forward")
"""Where the time of a request goes."""


class RewardMetrics:
    """Pairs by outcome, responses by where their score came from, batches, queue and models."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pairs = Counter("madpo_reward_pairs", "Pairs asked for, by outcome", ["outcome"], registry=registry)
        self.responses = Counter(
            "madpo_reward_responses", "Responses scored, by source: model or cache", ["source"], registry=registry
        )
        self.duration = Histogram(
            "madpo_reward_score_duration_seconds",
            "Seconds a request waited (queue), was tokenized (tokenize), or one batch took (forward)",
            ["phase"],
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "madpo_reward_batch_tokens",
            "Tokens of one batch, padding excluded",
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self.batch_responses = Histogram(
            "madpo_reward_batch_responses", "Responses of one batch", buckets=_RESPONSE_BUCKETS, registry=registry
        )
        self.padding_tokens = Counter(
            "madpo_reward_padding_tokens", "Positions of forward passes that held no token", registry=registry
        )
        self.refusals = Counter(
            "madpo_reward_refusals", "Requests refused for want of room in queue or memory", registry=registry
        )
        self.queue_tokens = Gauge(
            "madpo_reward_queue_tokens", "Tokens of requests let in and not yet answered", registry=registry
        )
        self.resident_models = Gauge("madpo_reward_resident_models", "Models in memory", registry=registry)
        for outcome in OUTCOMES:
            self._pairs.labels(outcome)
        for source in SOURCES:
            self.responses.labels(source)
        for phase in PHASES:
            self.duration.labels(phase)

    @contextmanager
    def count_pairs(self, pairs: int) -> Iterator[None]:
        """Count `pairs` under the outcome of the block."""
        outcome = "failed"
        try:
            yield
            outcome = "scored"
        except OverloadedError:
            outcome = "refused"
            raise
        except InvalidArgumentError:
            outcome = "invalid"
            raise
        except (asyncio.CancelledError, DeadlineExceededError):
            outcome = "dropped"
            raise
        finally:
            self._pairs.labels(outcome=outcome).inc(pairs)
