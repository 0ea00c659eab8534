"""Documents of the version before, of this one and of the next: read, written and refused as promised.

`formats/1` has what this version writes, byte for byte, and `formats/0.1.0` what that version wrote; neither is ever
changed. A change of a form fails here: add a field, or count the format up and keep both.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import UnknownFormatError
from madpo.storage import bundle, documents, keys
from madpo.storage.access_tokens import TokenTable
from madpo.storage.audit import read_records, write_record
from madpo.storage.checkpoints import CheckpointStore, owning_attempt
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.results import JobOutcome, read_result, read_spec, write_result, write_spec
from madpo.types import AccessToken, AuditRecord, FileEntry, Job, JobKind, JobResult, JobState, Role, TokenLimits

FORMATS = Path(__file__).parent / "formats"
JOB_ID, DATASET_ID = "job-" + "1" * 32, "dataset-" + "2" * 32
JOB = Job(
    JOB_ID,
    JobKind.EVALUATION,
    JobState.PENDING,
    {"model": {"model_id": "model-" + "2" * 32}},
    display_name="tiny",
    depends_on=("job-" + "3" * 32,),
    create_time=12.5,
    submitted_by="ana",
)
OUTCOME = JobOutcome(JobState.SUCCEEDED, JobResult("model-" + "2" * 32, {"loss": 0.5}, warnings=("no plot",)))
TOKEN = AccessToken("ana", Role.SUBMIT, create_time=1.5, created_by="operator", limits=TokenLimits(unfinished_jobs=3))
RECORD = AuditRecord(1e9, "ana", Role.SUBMIT, "CreateJob", "OK", (JOB_ID,), "a-request", "127.0.0.1")
MANIFEST = bundle.Manifest((FileEntry("config.json", 2, "4" * 64),), {"display_name": "tiny"}, 12.5)
AUDITED = keys.audit_record("2001-09-09", time_us=10**15, nonce="0" * 12)

READ: Mapping[str, tuple[str, Callable[[LocalStore], Any], Any]] = {
    "spec.json": (keys.job_spec(JOB_ID), lambda store: read_spec(store, JOB_ID), JOB),
    "result.json": (keys.job_result(JOB_ID), lambda store: read_result(store, JOB_ID), OUTCOME),
    "owner.json": (keys.job_owner(JOB_ID), lambda store: owning_attempt(store, JOB_ID), 3),
    "token.json": (keys.access_token("ana"), lambda store: only_token(store), TOKEN),
    "audit.json": (AUDITED, lambda store: next(iter(read_records(store, page_size=2)[0]), None), RECORD),
    "manifest.json": ("models/m/manifest.json", lambda store: bundle.read_manifest(store, "models/m"), MANIFEST),
}
"""Of each file: its key, how it is read, and what comes of that."""
REPORTED = ("token.json", "audit.json")
"""Read among others, which go on without them."""


def only_token(store: LocalStore) -> AccessToken | None:
    table = TokenTable(store)
    table.read()
    return table.named("ana")


def read(path: Path, data: bytes, name: str) -> Any:
    key, reader, _ = READ[name]
    store = LocalStore(path)
    store.put(key, data)
    return reader(store)


def reads(version: str) -> list[tuple[str, Path]]:
    return [(path.name, path) for path in sorted((FORMATS / version).iterdir())]


@pytest.mark.parametrize(("name", "path"), [*reads("0.1.0"), *reads("1")])
def test_what_earlier_versions_wrote_is_read(tmp_path: Path, name: str, path: Path) -> None:
    expected = READ[name][2]
    if path.parent.name == "0.1.0" and name == "spec.json":
        expected = Job(**{**as_fields(JOB), "submitted_by": ""})

    assert read(tmp_path, path.read_bytes(), name) == expected


@pytest.mark.parametrize("name", READ)
def test_fields_of_the_next_version_are_passed_over(tmp_path: Path, name: str) -> None:
    body = documents.unseal((FORMATS / "1" / name).read_bytes(), key=name)
    newer = {**body, "added": {"later": 1}}
    data = documents.seal(newer, version=None if name == "manifest.json" else 1)

    assert read(tmp_path, data, name) == READ[name][2]


def test_parts_of_the_next_version_are_passed_over_too(tmp_path: Path) -> None:
    store, described = LocalStore(tmp_path), {"display_name": "", "kind": "prompt", "rows": 1, "columns": ["prompt"]}
    forms = [{"name": "text", "rows": 1, "columns": {"prompt": "prompt"}, "later": 2}]
    manifest = bundle.Manifest((), {**described, "forms": forms}, 12.5)
    store.put(f"{keys.dataset(DATASET_ID)}/manifest.json", bundle._encode(manifest))
    token = documents.unseal((FORMATS / "1/token.json").read_bytes(), key="")
    store.put(keys.access_token("ana"), documents.seal({**token, "limits": {**token["limits"], "later": 1}}))

    (form,) = DatasetStore(store).get(DATASET_ID).forms
    assert (form.name, only_token(store)) == ("text", TOKEN)


@pytest.mark.parametrize("name", READ)
def test_the_next_format_is_refused_by_name_or_reported_and_left_out(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = documents.seal({"what": "nobody knows yet"}, version=2)

    if name in REPORTED:
        assert read(tmp_path, data, name) is None
        assert [READ[name][0] in record.error for record in caplog.records] == [True]  # type: ignore[attr-defined]
    else:
        with pytest.raises(UnknownFormatError, match=f"{READ[name][0]} has format 2"):
            read(tmp_path, data, name)


def test_this_version_writes_what_is_kept_here(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_spec(store, JOB)
    write_result(store, JOB_ID, OUTCOME.state, OUTCOME.result, OUTCOME.reason)
    write_record(store, RECORD)
    CheckpointStore(store, JOB_ID, attempt=3).take_ownership()
    written = {
        "spec.json": store.get(keys.job_spec(JOB_ID)),
        "result.json": store.get(keys.job_result(JOB_ID)),
        "audit.json": next(store.get(info.key) for info in store.list("audit/")),
        "manifest.json": bundle._encode(MANIFEST),
    }

    for name, data in written.items():
        assert data == (FORMATS / "1" / name).read_bytes(), name
    owner = json.loads(store.get(keys.job_owner(JOB_ID)))
    # A field may be added.
    assert owner.keys() == json.loads((FORMATS / "1" / "owner.json").read_bytes()).keys() | {"holder"}


def as_fields(job: Job) -> dict[str, Any]:
    return {field.name: getattr(job, field.name) for field in fields(job)}
