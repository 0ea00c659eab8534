"""Layout of the object store. Every key is built here, from ids we made; user text is never part of one.

    datasets/{dataset_id}/part-00000.parquet ...     normalised rows
    datasets/{dataset_id}/manifest.json              written last: without it there is no dataset
    tokens/{dataset_id}/{digest}/part-00000.parquet ...          token ids of a dataset by one tokenizer and template
    tokens/{dataset_id}/{digest}/manifest.json       written last
    tokens/{dataset_id}/{digest}/held                somebody goes on with the files that are there, since its time
    models/{model_id}/...                            safetensors, tokenizer, config
    models/{model_id}/manifest.json                  written last
    reference_logps/{digest}/00000/part-00000-{sha256}.safetensors    of (model, dataset, tokens, rows)
    reference_logps/{digest}/00000/manifest.json     written last: the first writer's numbers are those of all
    jobs/{job_id}/spec.json                          request of the job; Redis can be rebuilt from it
    jobs/{job_id}/result.json                        how the job ended; again after it was resumed
    jobs/{job_id}/owner.json                         the attempt that owns the job; compare-and-swap fences older ones
    jobs/{job_id}/memory_shortage.json               what a sharded run that ran out of memory tells the next attempt
    jobs/{job_id}/logs/a00002-{sha256}.log           the end of what an attempt printed
    jobs/{job_id}/last_evaluation/a00002.json        an attempt has begun the evaluation after the last step
    jobs/{job_id}/generations/{engine}/part-00003-{sha256}.jsonl responses a job has drawn; removed when it ends
    jobs/{job_id}/judgements/{sha256 of the question}.json       what a judge answered; removed when the job ends
    jobs/{job_id}/rewards/part-00003-{sha256}.json               rewards of rows by number; removed when the job ends
    jobs/{job_id}/checkpoints/step-00001000/a00002/...           files of one attempt's checkpoint
    jobs/{job_id}/checkpoints/step-00001000/a00002/manifest.json written last
    jobs/{job_id}/checkpoint_parts/step-00001000-a00002-rank-00001.json  what a rank has stored of one; until it is real
    jobs/{job_id}/spared/step-00001000-{user's job_id}.json      another job names that checkpoint: it is not pruned
    jobs/{job_id}/margins/a00002-000017-{sha256}.jsonl           margins as they were learned, before they were used
    jobs/{job_id}/ledger/step-00001000-a00002-{sha256}.parquet   ledger rows of the steps up to this one
    jobs/{job_id}/artifacts/a00002/{name}            report, plots, ledger, metrics
    jobs/{job_id}/artifacts/a00002/manifest.json     written last
    jobs/{job_id}/artifacts/a00002-early-00001000/{name}         the same as it stood at a step, before the end
    access/tokens/{name}.json                        a named token: role, expiry, limits and the digest of its secret
    pins/{id}.json                                   a job, model or dataset that retention leaves alone
    withdrawn/{prefix of a bundle}.json              manifest of a bundle that is being removed, or will be shown again
    audit/{yyyy-mm-dd}/{microseconds}-{nonce}.json   one call that was to change something; never written again
    probes/{nonce}                                   written and removed when a service opens the store
    probes/{nonce}/{name}                            written and removed by `madpo doctor`

Every byte is covered by a digest, which is verified where it is used: files of a bundle by its manifest, JSON documents
by their own `sha256` (`storage/documents.py`), and all else by its name (`storage/content_names.py`).

Steps and attempts are zero-padded, so listing order is their order. Ids: `dataset-`, `model-`: 32 hex digits of the
content's SHA-256; `job-`: 32 hex digits of the request id's.
"""

import re

from madpo.errors import InvalidArgumentError

MANIFEST = "manifest.json"
DATASETS = "datasets"
MODELS = "models"
JOBS = "jobs"
ACCESS_TOKENS = "access/tokens"
AUDIT = "audit"
PINS = "pins"
WITHDRAWN = "withdrawn"
TOKENS = "tokens"
REFERENCE_LOGPS = "reference_logps"

PROBES = "probes"

_BUNDLE = re.compile(
    r"((?:datasets|models)/[^/]+|tokens/[^/]+/[^/]+|reference_logps/[^/]+/\d+|"
    r"jobs/[^/]+/(?:checkpoints/[^/]+/[^/]+|artifacts/[^/]+|generations|rewards))/.+"
)
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_MAX_KEY_CHARS = 512


def check_path(path: str) -> str:
    """The path itself, when every store keeps it as it is.

    That is: names of ASCII letters, digits, `_`, `-` and `.`, separated by `/`, none empty or starting with `.` or `-`.

    Raises:
        InvalidArgumentError: Names the path.
    """
    if len(path) > _MAX_KEY_CHARS or not _PATH.fullmatch(path):
        raise InvalidArgumentError(
            f"{path[:_MAX_KEY_CHARS]!r} cannot be stored: expected up to {_MAX_KEY_CHARS} ASCII letters, digits and"
            " _ - . in '/'-separated names that start with a letter, a digit or _"
        )
    return path


def bundle_of(key: str) -> str | None:
    """The prefix of the bundle that an object belongs to; None for those that stand for themselves."""
    match = _BUNDLE.fullmatch(key)
    return match[1] if match else None


def is_growing(prefix: str) -> bool:
    """Whether a bundle is kept from one attempt to the next before it is whole."""
    return prefix.startswith(f"{TOKENS}/") or prefix.endswith(("/generations", "/rewards"))


def dataset(dataset_id: str) -> str:
    """Prefix of a dataset."""
    return f"datasets/{dataset_id}"


def dataset_tokens(dataset_id: str) -> str:
    """Prefix of all token ids made of a dataset."""
    return f"tokens/{dataset_id}"


def held(prefix: str) -> str:
    """Says that somebody goes on with a bundle that was left half made."""
    return f"{prefix}/held"


def tokens(dataset_id: str, digest: str) -> str:
    """Prefix of token ids by the digest of what made them."""
    return f"tokens/{dataset_id}/{digest}"


def model(model_id: str) -> str:
    """Prefix of a model."""
    return f"models/{model_id}"


def reference_logps(digest: str) -> str:
    """Prefix of reference log-probs by the digest of everything they depend on."""
    return f"reference_logps/{digest}"


def reference_logps_chunk(digest: str, number: int) -> str:
    """Prefix of some rows of reference log-probs."""
    return f"reference_logps/{digest}/{number:05d}"


def job(job_id: str) -> str:
    """Prefix of everything a job wrote."""
    return f"jobs/{job_id}"


def job_spec(job_id: str) -> str:
    """The job's request."""
    return f"jobs/{job_id}/spec.json"


def job_result(job_id: str) -> str:
    """How the job ended."""
    return f"jobs/{job_id}/result.json"


def job_owner(job_id: str) -> str:
    """The fencing record."""
    return f"jobs/{job_id}/owner.json"


def memory_shortage(job_id: str) -> str:
    """That memory ran out, for the next attempt."""
    return f"jobs/{job_id}/memory_shortage.json"


def logs(job_id: str) -> str:
    """Prefix of the logs of a job's attempts."""
    return f"jobs/{job_id}/logs/"


def log(job_id: str, *, attempt: int, sha256: str) -> str:
    """The end of what an attempt printed."""
    return f"{logs(job_id)}a{attempt:05d}-{sha256}.log"


def last_evaluations(job_id: str) -> str:
    """Prefix of the notes of a job's evaluations after the last step."""
    return f"jobs/{job_id}/last_evaluation/"


def last_evaluation(job_id: str, *, attempt: int) -> str:
    """Note of one attempt that it began."""
    return f"{last_evaluations(job_id)}a{attempt:05d}.json"


def generations(job_id: str) -> str:
    """Key prefix of the responses that an evaluation on its way has drawn."""
    return f"jobs/{job_id}/generations"


def generations_by(job_id: str, *, engine: str) -> str:
    """Key prefix of those that one version of an engine has drawn."""
    return f"{generations(job_id)}/{check_path(engine)}"


def judgements(job_id: str) -> str:
    """Prefix of what a judge has answered so far."""
    return f"jobs/{job_id}/judgements"


def judgement(job_id: str, *, question: str) -> str:
    """What a judge answered to one question, which is known by its SHA-256."""
    return f"{judgements(job_id)}/{question}.json"


def rewards(job_id: str) -> str:
    """Prefix of the rewards that a job has learned so far."""
    return f"jobs/{job_id}/rewards"


def checkpoints(job_id: str) -> str:
    """Prefix of all checkpoints of a job."""
    return f"jobs/{job_id}/checkpoints"


def checkpoint(job_id: str, *, step: int, attempt: int) -> str:
    """Prefix of one checkpoint."""
    return f"jobs/{job_id}/checkpoints/step-{step:08d}/a{attempt:05d}"


def checkpoint_parts(job_id: str) -> str:
    """Prefix of what ranks that do not lead have stored of checkpoints that are on their way."""
    return f"jobs/{job_id}/checkpoint_parts"


def checkpoint_part(job_id: str, *, step: int, attempt: int, rank: int) -> str:
    """What a rank has stored of one."""
    return f"{checkpoint_parts(job_id)}/step-{step:08d}-a{attempt:05d}-rank-{rank:05d}.json"


def spared_checkpoints(job_id: str) -> str:
    """Prefix of who names checkpoints of a job."""
    return f"jobs/{job_id}/spared"


def spared_checkpoint(job_id: str, *, step: int, user: str) -> str:
    """That another job names a checkpoint."""
    return f"jobs/{job_id}/spared/step-{step:08d}-{user}.json"


def margin_journal(job_id: str) -> str:
    """Prefix of a job's margin journal."""
    return f"jobs/{job_id}/margins"


def margin_journal_part(job_id: str, *, attempt: int, part: int, sha256: str) -> str:
    """One journal entry."""
    return f"jobs/{job_id}/margins/a{attempt:05d}-{part:06d}-{sha256}.jsonl"


def ledger_part(job_id: str, *, step: int, attempt: int, sha256: str) -> str:
    """Ledger rows up to a step."""
    return f"jobs/{job_id}/ledger/step-{step:08d}-a{attempt:05d}-{sha256}.parquet"


def all_artifacts(job_id: str) -> str:
    """Prefix of the artifacts of all attempts of a job."""
    return f"jobs/{job_id}/artifacts"


def artifacts(job_id: str, *, attempt: int, early_step: int | None = None) -> str:
    """Prefix of the artifacts of one attempt, as they stood at a step, or from its end."""
    early = "" if early_step is None else f"-early-{early_step:08d}"
    return f"jobs/{job_id}/artifacts/a{attempt:05d}{early}"


def artifacts_order(name: str) -> tuple[str, bool, str]:
    """Sorts the last parts of `artifacts` by age; stores do not agree on where a hyphen stands among keys."""
    attempt, hyphen, step = name.partition("-")
    return attempt, not hyphen, step


def access_token(name: str) -> str:
    """A named token."""
    return f"{ACCESS_TOKENS}/{name}.json"


def pin(thing_id: str) -> str:
    """That somebody pinned a job, a model or a dataset."""
    return f"{PINS}/{thing_id}.json"


def withdrawal(prefix: str) -> str:
    """That a bundle is out of sight, to be removed or shown again."""
    return f"{WITHDRAWN}/{prefix}.json"


def audit_day(day: str) -> str:
    """Prefix of what was noted on a day, `2026-01-31` in UTC."""
    return f"{AUDIT}/{day}"


def audit_record(day: str, *, time_us: int, nonce: str) -> str:
    """One noted call, at so many microseconds since the epoch."""
    return f"{audit_day(day)}/{time_us:016d}-{nonce}.json"


def probe(nonce: str) -> str:
    """A short-lived object that shows what the store can do, or the prefix of several."""
    return f"{PROBES}/{nonce}"
