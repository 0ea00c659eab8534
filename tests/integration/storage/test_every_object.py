"""Every kind of object that a key can name, damaged: its use gives the same as before, or an error that names it."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from madpo.data.encode import EncodedRow
from madpo.errors import CorruptObjectError, NotFoundError
from madpo.models.logps import ResponseGroup
from madpo.storage import bundle, keys, pins
from madpo.storage.access_tokens import TokenTable, create_token
from madpo.storage.artifacts import list_artifacts, open_artifact, publish_artifacts
from madpo.storage.audit import read_records, write_record
from madpo.storage.check import check_store
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.datasets import DatasetStore
from madpo.storage.growing import GrowingBundle
from madpo.storage.local import LocalStore
from madpo.storage.local_copies import LocalCopies
from madpo.storage.logs import read_log, write_log
from madpo.storage.models import ModelStore
from madpo.storage.results import read_result, read_spec, write_result, write_spec
from madpo.storage.spared import spare, spared_steps
from madpo.storage.tokens import TokenStore
from madpo.storage.withdrawals import Withdrawal, withdraw
from madpo.types import (
    AccessToken,
    AuditRecord,
    DatasetKind,
    FileEntry,
    Job,
    JobKind,
    JobResult,
    JobState,
    PreferencePair,
    Role,
    StoreFinding,
)
from madpo.worker.phase import Phase
from madpo.worker.workspace import Run
from madpo_evaluator.judging.asking import KeptReplies
from madpo_evaluator.judging.endpoint import Reply
from madpo_trainer.last_evaluation import note_begin
from madpo_trainer.ledger import Ledger, LedgerRow
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.memory import note_shortage, noted_shortage
from madpo_trainer.ranks import OneRank
from madpo_trainer.stored_reference import ReferenceStore, StoredLogps
from tests.damage import DAMAGES

JOB = "job-" + "1" * 32
SPEC = Job(JOB, JobKind.EVALUATION, JobState.PENDING, {"model": {"model_id": "m"}}, create_time=12.5)
PAIRS = [PreferencePair(f"film {n}", "good", "bad", row=n + 1) for n in range(4)]
NO_KEYS = {"check_path", "bundle_of", "is_growing", "artifacts_order", "held"}
ROOTS = {
    "generations": "generations_by",
    "judgements": "judgement",
    "dataset_tokens": "tokens",
    "reference_logps": "reference_logps_chunk",
    "logs": "log",
    "last_evaluations": "last_evaluation",
    "checkpoints": "checkpoint",
    "checkpoint_parts": "checkpoint_part",
    "spared_checkpoints": "spared_checkpoint",
    "margin_journal": "margin_journal_part",
    "all_artifacts": "artifacts",
    "audit_day": "audit_record",
    "job": "job_spec",
}
"""Prefixes of objects that another key names."""


@dataclass(frozen=True)
class Case:
    """Stores objects of one kind, and uses them as the product does."""

    fill: Callable[[LocalStore, Path], object]
    use: Callable[[LocalStore, Path], Any]


def directory(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def add_model(store: LocalStore, path: Path) -> str:
    config = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()
    weights = (2).to_bytes(8, "little") + b"{}"
    files = directory(path / "files", config__json=config, model__safetensors=weights)
    return ModelStore(store, path).publish(files, display_name="tiny", kind="causal_lm")[0].model_id


def read_directory(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def use_model(store: LocalStore, path: Path) -> Any:
    name = next(path.parent.glob("model-name")).read_text()
    return read_directory(ModelStore(store, path / "cache").fetch(name))


def fill_model(store: LocalStore, path: Path) -> None:
    (path.parent / "model-name").write_text(add_model(store, path))


def fill_dataset(store: LocalStore, path: Path) -> None:
    stored, _ = DatasetStore(store).write(PAIRS, kind=DatasetKind.PREFERENCE, display_name="", scratch=path)
    (path.parent / "dataset-name").write_text(stored.dataset_id)


def use_dataset(store: LocalStore, path: Path) -> Any:
    return list(DatasetStore(store).read((path.parent / "dataset-name").read_text()))


ROWS = [EncodedRow(row, [1, row], ([2, 3], [4]), ()) for row in range(1, 4)]


def add_growing(prefix: str) -> Callable[[LocalStore, Path], None]:
    def add(store: LocalStore, path: Path) -> None:
        growing = GrowingBundle(store, prefix, suffix="jsonl")
        growing.add(next(directory(path, part=b"drawn").iterdir()))

    return add


def use_growing(prefix: str) -> Callable[[LocalStore, Path], Any]:
    def use(store: LocalStore, path: Path) -> Any:
        growing, part = GrowingBundle(store, prefix, suffix="jsonl"), path / "part"
        if not growing.files:
            return b"drawn"  # again
        path.mkdir(parents=True, exist_ok=True)
        growing.fetch(growing.files[0], part)
        return part.read_bytes()

    return use


def reference(store: LocalStore, path: Path) -> Any:
    groups = [ResponseGroup([row], ([row], [row, row])) for row in range(6)]

    def compute(groups: Any, phase: Any) -> StoredLogps:
        values = torch.tensor([float(-group.prompt_ids[0]) for group in groups for _ in range(2)])
        return StoredLogps(values, torch.full((len(groups),), 2).int(), torch.tensor([1, 2] * len(groups)).int())

    path.mkdir(parents=True, exist_ok=True)
    run = Run(path, SPEC)
    chunks = ReferenceStore(
        store=store, copies=LocalCopies(path), ranks=OneRank(), begin=partial(Phase, run), chunk_tokens=6
    )
    lengths = np.full(6, 3)
    found = chunks.load_or_compute("d" * 32, groups, rows=np.arange(6), lengths=lengths, compute=compute)
    return {name: tensor.tolist() for name, tensor in found.tensors().items()}


def fill_checkpoint(store: LocalStore, path: Path) -> None:
    checkpoints = CheckpointStore(store, JOB, attempt=1)
    checkpoints.take_ownership()
    for step in (1, 2):
        files = directory(path / str(step), state__json=b"%d" % step)
        checkpoints.publish(step, files, metadata={"step": step})


def use_checkpoint(store: LocalStore, path: Path) -> Any:
    """A training goes on from whichever is whole to the same end."""
    found = CheckpointStore(store, JOB, attempt=1).latest_valid(path / "resume")
    assert found is None or int((path / "resume" / "state.json").read_bytes()) == found[0].step == found[1]["step"]


def fill_owner(store: LocalStore, path: Path) -> None:
    CheckpointStore(store, JOB, attempt=1).take_ownership()
    CheckpointStore(store, JOB, attempt=3).take_ownership()


def use_owner(store: LocalStore, path: Path) -> Any:
    CheckpointStore(store, JOB, attempt=4).take_ownership()


def fill_ledger(store: LocalStore, path: Path) -> None:
    ledger = Ledger(store, job_id=JOB, attempt=1, parts=[])
    ledger.extend([LedgerRow("p", 1, 0, 1, 0.5, 1.0, 0.25, 0.7, 9)])
    ledger.cut(1)
    ledger.store()
    (path.parent / "parts").write_text(json.dumps(ledger.parts))


def use_ledger(store: LocalStore, path: Path) -> Any:
    parts = json.loads((path.parent / "parts").read_text())
    directory(path)
    Ledger(store, job_id=JOB, attempt=2, parts=parts).join(path / "ledger.parquet")
    return (path / "ledger.parquet").read_bytes()


def use_artifacts(store: LocalStore, path: Path) -> Any:
    found = {}
    for file in list_artifacts(store, JOB):
        with open_artifact(store, JOB, file.path) as stream:
            found[file.path] = b"".join(iter(partial(stream.read, 3), b""))
    if not found:
        raise NotFoundError(f"{keys.artifacts(JOB, attempt=1)}/manifest.json")
    return found


def use_tokens_of_callers(store: LocalStore, path: Path) -> Any:
    table = TokenTable(store)
    table.read()
    return [token.name for token in table.tokens()] or None


def use_margins(store: LocalStore, path: Path) -> Any:
    """What is not known is asked for, and the reward model says the same again."""
    known, _ = MarginJournal(store, job_id=JOB, attempt=2).load("r1", without_damaged=True)
    assert known.items() <= {"p": 0.5, "q": None}.items()


def fill_spared(store: LocalStore, path: Path) -> None:
    write_spec(store, SPEC)
    spare(store, JOB, 3, user=JOB)


def fill_withdrawal(store: LocalStore, path: Path) -> None:
    bundle.publish(store, "models/m", directory(path), metadata={})
    withdraw(store, "models/m", stored_time=bundle.read_manifest(store, "models/m").stored_time)


def use_withdrawal(store: LocalStore, path: Path) -> Any:
    withdrawal = Withdrawal.taken_over(store, keys.withdrawal("models/m"))
    return withdrawal and withdrawal.is_final


RECORD = AuditRecord(
    time=1e9, caller="ana", role=Role.READ, method="Pin", subjects=(JOB,), code="OK", request_id="r", peer="p"
)
FILE = FileEntry("model/model.safetensors", 3, "a" * 64)
DRAWN = keys.generations_by(JOB, engine="vllm-0.11.0")
CASES: Mapping[str, Case] = {
    "dataset": Case(fill_dataset, use_dataset),
    "model": Case(fill_model, use_model),
    "reference_logps_chunk": Case(reference, reference),
    "job_spec": Case(lambda store, path: write_spec(store, SPEC), lambda store, path: read_spec(store, JOB)),
    "job_result": Case(
        lambda store, path: write_result(store, JOB, JobState.SUCCEEDED, JobResult("m", {"loss": 0.5}), ""),
        lambda store, path: read_result(store, JOB),
    ),
    "job_owner": Case(fill_owner, use_owner),
    "memory_shortage": Case(
        lambda store, path: note_shortage(store, JOB, {"step": 1, "before": 8, "after": 4}),
        lambda store, path: noted_shortage(store, JOB) or None,
    ),
    "log": Case(
        lambda store, path: write_log(store, JOB, "said", attempt=2),
        lambda store, path: read_log(store, JOB, attempt=2),
    ),
    "last_evaluation": Case(
        lambda store, path: note_begin(store, JOB, attempt=1),
        lambda store, path: min(2, note_begin(store, JOB, attempt=2)) and None,  # how many there are says it all
    ),
    "generations_by": Case(add_growing(DRAWN), use_growing(DRAWN)),
    "judgement": Case(
        lambda store, path: KeptReplies(store, JOB).put("0" * 64, Reply("[[A]]", 9, 1)),
        lambda store, path: KeptReplies(store, JOB).get("0" * 64),  # asked again
    ),
    "rewards": Case(add_growing(keys.rewards(JOB)), use_growing(keys.rewards(JOB))),
    "checkpoint": Case(fill_checkpoint, use_checkpoint),
    "checkpoint_part": Case(
        lambda store, path: CheckpointStore(store, JOB, attempt=1, holder="h").parts.leave(3, 1, [FILE]),
        lambda store, path: CheckpointStore(store, JOB, attempt=1, holder="h").parts.found(3) or None,
    ),
    "margin_journal_part": Case(
        lambda store, path: MarginJournal(store, job_id=JOB, attempt=1).append(0, {"p": 0.5, "q": None}, "r1"),
        use_margins,
    ),
    "ledger_part": Case(fill_ledger, use_ledger),
    "artifacts": Case(
        lambda store, path: publish_artifacts(store, JOB, directory(path, report=b"all is well"), attempt=1),
        use_artifacts,
    ),
    "access_token": Case(
        lambda store, path: create_token(store, AccessToken("ana", Role.READ, create_time=1.0)), use_tokens_of_callers
    ),
    "pin": Case(lambda store, path: pins.pin(store, JOB, caller="ana"), lambda store, path: pins.pinned(store) or None),
    "spared_checkpoint": Case(fill_spared, lambda store, path: spared_steps(store, JOB) or None),
    "withdrawal": Case(fill_withdrawal, use_withdrawal),
    "audit_record": Case(
        lambda store, path: write_record(store, RECORD),
        lambda store, path: read_records(store, page_size=5)[0] or None,
    ),
}


@pytest.fixture
def tokens_case(make_toy_tokenizer: Callable[..., Any]) -> Case:
    tokenizer = make_toy_tokenizer()

    def use(store: LocalStore, path: Path) -> Any:
        if not TokenStore(store).has("dataset-1", tokenizer):  # made again
            TokenStore(store).write("dataset-1", tokenizer, iter(ROWS), scratch=path)
        return list(TokenStore(store).read("dataset-1", tokenizer))

    return Case(use, use)


def test_every_key_has_a_case() -> None:
    public = {name for name, each in vars(keys).items() if inspect.isfunction(each) and not name.startswith("_")}

    assert public - NO_KEYS - {"probe", "tokens"} == CASES.keys() | ROOTS.keys()
    assert set(ROOTS.values()) <= CASES.keys() | {"tokens"}


@pytest.mark.parametrize("name", [*CASES, "tokens"])
def test_damage_is_met_at_use_and_found_by_the_check(name: str, tmp_path: Path, request: Any) -> None:
    case = request.getfixturevalue("tokens_case") if name == "tokens" else CASES[name]
    whole = LocalStore(tmp_path / "whole")
    case.fill(whole, tmp_path / "fill")
    before = case.use(whole, tmp_path / "use")
    assert findings(whole) == []
    stored = {info.key: whole.get(info.key) for info in whole.list("")}
    assert stored
    for index, key in enumerate(stored):
        for number, damage in enumerate([*DAMAGES, None]):
            place = tmp_path / f"{index}-{number}"
            store = LocalStore(place / "store")
            for other, data in stored.items():
                store.put(other, data)
            store.delete(key) if damage is None else store.put(key, damage(stored[key]))
            found = findings(store)
            if damage is not None:
                assert any(each.key == key and each.is_loss for each in found), (key, damage.__name__)
            after = outcome(partial(case.use, store, tmp_path / f"use-{index}-{number}"))
            if isinstance(after, NotFoundError):
                assert damage is None
            elif isinstance(after, CorruptObjectError):
                assert key in str(after)
            else:
                assert after in (before, None), (key, damage)


@pytest.mark.parametrize("name", ["reference_logps_chunk", "generations_by", "rewards", "checkpoint", "tokens"])
def test_repair_removes_what_is_made_again(name: str, tmp_path: Path, request: Any) -> None:
    case = request.getfixturevalue("tokens_case") if name == "tokens" else CASES[name]
    store = LocalStore(tmp_path / "store")
    case.fill(store, tmp_path / "fill")
    before = case.use(store, tmp_path / "use")
    key = next(info.key for info in store.list("") if is_content(info.key))
    store.put(key, b"damaged")

    (finding,) = findings(store, repair=True)

    assert (finding.key, finding.repaired, finding.is_loss) == (key, True, False)
    assert [each for each in findings(store) if each.is_loss] == []
    assert case.use(store, tmp_path / "again") == before


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_what_is_damaged_of_a_job_that_is_over_is_named_and_left(state: JobState, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    CASES["checkpoint"].fill(store, tmp_path / "fill")
    write_result(store, JOB, state, None, "")
    key = next(info.key for info in store.list("") if is_content(info.key))
    store.put(key, b"damaged")

    (finding,) = findings(store, repair=True)

    assert (finding.key, finding.repaired, finding.is_loss) == (key, False, True)
    assert store.get(key) == b"damaged"


def test_what_cannot_be_made_again_is_left_for_its_owner(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    CASES["model"].fill(store, tmp_path / "fill")
    key = next(info.key for info in store.list("models/") if info.key.endswith(".safetensors"))
    store.put(key, b"damaged")

    (finding,) = findings(store, repair=True)

    assert (finding.key, finding.repaired, finding.is_loss) == (key, False, True)
    assert store.get(key) == b"damaged"


def outcome(use: Callable[[], Any]) -> Any:
    try:
        return use()
    except (CorruptObjectError, NotFoundError) as error:
        return error


def is_content(key: str) -> bool:
    return keys.bundle_of(key) is not None and not key.endswith(keys.MANIFEST)


def findings(store: LocalStore, *, repair: bool = False) -> list[StoreFinding]:
    return [said for said in check_store(store, repair=repair) if isinstance(said, StoreFinding)]
