"""What the gateway counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge

CONTENTS = ("dataset", "model")
"""What clients upload."""
SCORED = ("pairs", "responses")
"""What clients have scored."""


class GatewayMetrics:
    """What came in, who watches, what was scored, and what the housekeeping had to mend."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.upload_bytes = Counter(
            "madpo_gateway_upload_bytes",
            "Bytes of uploaded files, also of uploads refused in the end",
            ["content"],
            registry=registry,
        )
        self.stored = Counter(
            "madpo_gateway_stored", "Datasets and models that were not there before", ["content"], registry=registry
        )
        self.watchers = Gauge("madpo_gateway_watch_streams", "Clients watching a job now", registry=registry)
        self.reaped = Counter(
            "madpo_gateway_jobs_reaped", "Jobs taken back from workers that went silent", registry=registry
        )
        self.restored = Counter(
            "madpo_gateway_jobs_restored", "Jobs the queue had lost and the object store remembered", registry=registry
        )
        self.audit_failures = Counter(
            "madpo_gateway_audit_failures", "Calls that could not be noted in the audit log", registry=registry
        )
        self.scored = Counter(
            "madpo_gateway_scored", "Pairs and single responses scored for clients", ["of"], registry=registry
        )
        self.scorings = Gauge("madpo_gateway_scoring_streams", "Clients having texts scored now", registry=registry)
        for of in SCORED:
            self.scored.labels(of)
        for content in CONTENTS:
            self.upload_bytes.labels(content)
            self.stored.labels(content)
