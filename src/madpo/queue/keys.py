"""Every Redis key of the job queue. Colons separate; no user text is ever part of a key.

    key (after the namespace)   type    TTL         written by             read by
    jobs                        zset    -           create, restore,       list: job ids by order of creation
                                                    forget
    job:{job_id}                hash    -           every script           every script, get, list
    job:{job_id}:events         stream  30 d after  every script           watch; about the newest 10,000 events
                                        the end
    job:{job_id}:dependents     set     until end   create, restore        scripts that end a job
    leases                      zset    -           claim, renew, endings  leases, reap: running jobs by their renewal
    reserved                    hash    -           reserve, and what       reserve: by job about to be created or
                                                    uses it up             resumed, until when (ms of Redis TIME), whose
    retired                     hash    -           retire, reinstate,     retired: by job that is about to be deleted,
                                                    forget                 since when (Redis TIME)
    mark                        hash    -           mark                   mark: a name that is lost with all the rest
    claim:{token}               hash    10 min      claim                  claim: a repeated call gets the same job
    queue:{name}                stream  -           scripts that make a    claim: a bell that wakes waiting workers
                                                    job pending
    queue:{name}:pending        zset    -           the same, and claim    claim, status: job ids by order of creation
    queue:{name}:waiting        set     -           create, restore, and   status: jobs that wait for others
                                                    what ends the wait
    queue:{name}:announced      hash    a lease     announce               announced: by worker, until when (ms of Redis
                                                                           TIME) and the names of what it can do
    queue:{name}:dead           stream  -           give_back, reap        status, operators: jobs that crashed often

The hashes and sorted sets are the truth; a lost or trimmed stream entry never loses a job. The scripts build the same
names in `scripts/common.lua`. They compute keys from job ids, so all of them must live on one server (no cluster).
"""

import re
from dataclasses import dataclass

_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)*")


@dataclass(frozen=True, slots=True)
class Keys:
    """Names under one namespace, so that several installations can share a server."""

    namespace: str

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ValueError(f"redis_namespace must be words joined by colons, got {self.namespace!r}")

    @property
    def jobs(self) -> str:
        """All jobs."""
        return f"{self.namespace}:jobs"

    @property
    def leases(self) -> str:
        """Running jobs."""
        return f"{self.namespace}:leases"

    def job(self, job_id: str) -> str:
        """The job's record."""
        return f"{self.namespace}:job:{job_id}"

    def events(self, job_id: str) -> str:
        """The job's event stream."""
        return f"{self.namespace}:job:{job_id}:events"

    def dependents(self, job_id: str) -> str:
        """Jobs waiting for this one."""
        return f"{self.namespace}:job:{job_id}:dependents"

    def claim(self, token: str) -> str:
        """What a claim call was answered."""
        return f"{self.namespace}:claim:{token}"

    def bell(self, queue: str) -> str:
        """Rings when a job becomes pending."""
        return f"{self.namespace}:queue:{queue}"

    def pending(self, queue: str) -> str:
        """Jobs to be claimed."""
        return f"{self.namespace}:queue:{queue}:pending"

    def waiting(self, queue: str) -> str:
        """Jobs that wait for others."""
        return f"{self.namespace}:queue:{queue}:waiting"

    def announced(self, queue: str) -> str:
        """What its workers can do."""
        return f"{self.namespace}:queue:{queue}:announced"

    def dead(self, queue: str) -> str:
        """Dead letters."""
        return f"{self.namespace}:queue:{queue}:dead"
