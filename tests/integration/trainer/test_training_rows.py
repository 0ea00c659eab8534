"""Rows on their way into a training: tokens are made once, and long rows fare as the job says."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from madpo.data.encode import EncodedRow
from madpo.data.encoding import RowEncoder
from madpo.data.tokenizer import load_tokenizer
from madpo.errors import InvalidPairError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import keys, tokens
from madpo.storage.datasets import DatasetStore
from madpo.storage.growing import GrowingBundle
from madpo.storage.models import ModelStore
from madpo.storage.tokens import TokenStore
from madpo.types import DatasetKind, Message, PreferencePair
from madpo.worker import phase
from madpo_trainer.kinds import policy_training
from madpo_trainer.model_runner import ModelRunner
from madpo_trainer.stored_reference import ReferenceStore
from tests.damage import empty, flip
from tests.integration.trainer.training_site import PAIRS, Site

pytestmark = pytest.mark.data

TRAINING = {"max_steps": 2, "global_batch_size": 4, "micro_batch_tokens": 40, "max_tokens": 64}


@pytest.fixture
def site(tmp_path: Path, make_toy_lm: Any, make_toy_tokenizer: Any) -> Iterator[Site]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Site.make(tmp_path, make_toy_lm(), make_toy_tokenizer())
    torch.set_num_threads(before)


def train(site: Site, name: str, dataset_id: str | None = None, **training: Any) -> Any:
    outcome = site.train(
        name,
        {
            "dataset": dataset_id or site.pairs,
            "eval_dataset": site.pairs,
            "method": {"name": "dpo", "params": {}},
            "training": {**TRAINING, **training},
        },
    )
    assert outcome.kind == "succeeded", outcome.reason
    return outcome.result


def stored(site: Site, rows: list[PreferencePair]) -> str:
    store = DatasetStore(site.store)
    dataset, _ = store.write(rows, kind=DatasetKind.PREFERENCE, display_name="rows", scratch=site.home / "scratch")
    return dataset.dataset_id


def token_files(site: Site) -> list[str]:
    return [info.key for info in site.store.list("tokens/")]


def test_tokens_are_made_once_for_all_trainings_of_any_length(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(site, "first")
    files = token_files(site)
    assert [key.rsplit("/", 1)[1] for key in files] == [
        "manifest.json",
        f"part-00000-{hashlib.sha256(site.store.get(files[1])).hexdigest()}.arrow",
    ]
    monkeypatch.setattr(RowEncoder, "encode", None)

    again = train(site, "again")
    shorter = train(site, "shorter", max_tokens=10, overlong="drop")

    assert token_files(site) == files
    assert again.model_id == first.model_id
    whole = {"rows": len(PAIRS), "truncated": 0, "dropped": 0}
    assert first.summary["rows"] == {"training": whole, "held_out": whole}
    assert shorter.summary["rows"]["training"]["dropped"] > 0


def test_a_model_names_the_template_it_was_trained_with(site: Site) -> None:
    result = train(site, "named")

    metadata = ModelStore(site.store, site.home / "cache").get(result.model_id).metadata
    (manifest,) = (key for key in token_files(site) if key.endswith("manifest.json"))
    assert metadata["template_sha256"] in site.store.get(manifest).decode()


def test_tokens_go_with_their_dataset(site: Site) -> None:
    train(site, "short-lived")

    DatasetStore(site.store).delete(site.pairs)

    assert token_files(site) == []


@pytest.mark.parametrize("damage", [empty, flip])
@pytest.mark.parametrize("ending", [".arrow", ".json"])
def test_damaged_tokens_are_made_again(site: Site, damage: Callable[[bytes], bytes], ending: str) -> None:
    first = train(site, "before")
    key = next(key for key in token_files(site) if key.endswith(ending))
    damaged = damage(site.store.get(key))
    site.store.put(key, damaged)
    shutil.rmtree(site.home / "work" / "cache")  # as on another host

    assert train(site, "after").model_id == first.model_id
    assert site.store.get(key) != damaged


def test_damaged_copies_of_rows_tokens_and_models_are_made_again(site: Site) -> None:
    first = train(site, "before")
    copies = site.home / "work" / "cache"
    files = [path for path in copies.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert {path.relative_to(copies).parts[0] for path in files} >= {"datasets", "models", "tokens"}
    for path in files:
        path.write_bytes(flip(path.read_bytes()))

    assert train(site, "after").model_id == first.model_id


LONG = PreferencePair("the film was good . the film was", "good . the film", "bad", row=1)
"""9, 5 and 2 tokens, BOS and EOS included."""


def test_long_rows_fare_as_the_job_says_and_are_counted(site: Site) -> None:
    rows = [LONG, *(PreferencePair("the film", "was good", f"was {'bad ' * n}", row=n) for n in range(2, 9))]
    dataset_id = stored(site, rows)

    with pytest.raises(
        InvalidPairError, match=r"1 of 8 rows are longer than training\.max_tokens=13 .*14.*first: 1 \("
    ):
        train(site, "error", dataset_id, max_tokens=13)
    counts = {
        policy: train(site, policy, dataset_id, max_tokens=13, overlong=policy).summary["rows"]["training"]
        for policy in ("drop", "truncate_prompt", "truncate_response")
    }

    assert counts["drop"] == {"rows": 8, "truncated": 0, "dropped": 1, "dropped_rows": [1]}
    assert counts["truncate_prompt"] == counts["truncate_response"] == {"rows": 8, "truncated": 1, "dropped": 0}
    advice = {
        "drop": "or let training.overlong truncate them, for without them no row is left",
        "truncate_response": "or take another training.overlong, for truncate_response leaves no row",
    }
    for policy, said in advice.items():
        with pytest.raises(InvalidPairError, match=f"8 of 8 rows .* {said}"):
            train(site, f"nothing-left-{policy}", dataset_id, max_tokens=3, overlong=policy)


def test_rows_that_the_template_cannot_read_are_named_before_training(
    tmp_path: Path, make_toy_lm: Any, make_toy_tokenizer: Any
) -> None:
    user, system = Message("user", "film"), Message("system", "film")
    good, bad = (Message("assistant", "good"),), (Message("assistant", "bad"),)
    prompts = [(user,), (system, user), (user, *good, user)]
    rows = [PreferencePair(prompt, good, bad, row=number) for number, prompt in enumerate(prompts, start=1)]
    picky = "{{ raise_exception('no system here') if messages[0]['role'] == 'system' }}"
    tokenizer = make_toy_tokenizer(template=picky + make_toy_tokenizer().chat_template)
    site = Site.make(tmp_path, make_toy_lm(), tokenizer)

    with pytest.raises(InvalidPairError, match=r"1 row cannot be tokenized, the first: row 2: .*no system here"):
        train(site, "picky", stored(site, rows))
    assert token_files(site) == []


def test_a_store_gives_back_the_tokens_it_was_given(
    object_store: ObjectStore, tmp_path: Path, make_toy_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_PART_ROWS", 4)
    store, tokenizer, dataset_id = TokenStore(object_store), make_toy_tokenizer(), "dataset-" + "1" * 32
    rows = [EncodedRow(n + 1, list(range(n)), tuple([n] * k for k in range(1, n % 3 + 1))) for n in range(10)]
    rows.append(EncodedRow(11, [1], ([5, 6, 7], [8]), ((1, 1, 1), ())))
    assert not store.has(dataset_id, tokenizer)

    store.write(dataset_id, tokenizer, rows, scratch=tmp_path)

    assert list(store.read(dataset_id, tokenizer)) == rows
    assert store.has(dataset_id, tokenizer)
    assert len(list(object_store.list(keys.dataset_tokens(dataset_id)))) == 4
    for other in (make_toy_tokenizer(template="{{ messages }}"), make_toy_tokenizer(bos=False)):
        with pytest.raises(NotFoundError, match="no tokens by this tokenizer"):
            store.read(dataset_id, other)


def test_a_tokenizer_saved_and_loaded_finds_its_tokens(tmp_path: Path, site: Site) -> None:
    train(site, "stored")
    tokenizer = load_tokenizer(site.home / "model")

    assert sum(1 for _ in TokenStore(site.store).read(site.pairs, tokenizer)) == len(PAIRS)


def objects(site: Site, prefix: str) -> dict[str, bytes]:
    """All but the manifests, which say when they were written."""
    found = (info.key for info in site.store.list(prefix))
    return {key: site.store.get(key) for key in found if not key.endswith("manifest.json")}


def end_after(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, site: Site, name: str, *, crash: bool) -> None:
    """Have the first call of a method be the last thing that a run does: it is asked to stop, or dies."""
    original = getattr(owner, method)

    def once(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        monkeypatch.setattr(owner, method, original)
        if crash:
            raise ZeroDivisionError("killed")
        next((site.home / name).glob("a*/")).joinpath("stop").write_text("drain")
        return result

    monkeypatch.setattr(owner, method, once)


SPEC = {"method": {"name": "x_sgdpo", "params": {}}, "training": TRAINING | {"max_steps": 4}}


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize(
    ("owner", "method", "kept"),
    [(GrowingBundle, "add", "tokens/"), (ReferenceStore, "_save", "reference_logps/")],
)
def test_a_run_that_ends_in_the_midst_of_a_long_phase_goes_on_behind_what_it_had_done(
    tmp_path: Path,
    make_toy_lm: Any,
    make_toy_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    kept: str,
    crash: bool,
) -> None:
    monkeypatch.setattr(tokens, "_PART_ROWS", 4)
    monkeypatch.setattr(phase, "_ITEMS_AT_ONCE", 1)
    monkeypatch.setattr(policy_training, "_CHUNK_MICRO_BATCHES", 1)
    model, tokenizer = make_toy_lm(), make_toy_tokenizer()
    whole, ended = (Site.make(tmp_path / name, model, tokenizer) for name in ("whole", "ended"))
    spec = SPEC | {"dataset": whole.pairs, "eval_dataset": whole.pairs}
    expected = whole.train("job", spec)

    end_after(monkeypatch, owner, method, ended, "job", crash=crash)
    if crash:
        with pytest.raises(ZeroDivisionError):
            ended.train("job", spec)
    else:
        assert ended.train("job", spec).kind == "stopped"
    first = objects(ended, kept)
    calls: list[Any] = []
    original = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *arguments: (calls.append(arguments), original(*arguments))[1])
    resumed = ended.train("job", spec, first=2)

    assert len(first) == 1
    assert first.items() <= objects(ended, kept).items()
    calls = [each for each in calls if kept in getattr(each[0], "_prefix", each[1])]
    assert len(calls) == len(objects(whole, kept)) - 1
    assert (expected.kind, resumed.kind) == ("succeeded", "succeeded")
    assert resumed.result.model_id == expected.result.model_id  # type: ignore[union-attr]
    assert objects(ended, "reference_logps/") == objects(whole, "reference_logps/")
    ids = [set(token_files(site)) for site in (whole, ended)]
    assert ids[0] == ids[1]


def test_the_reference_is_asked_about_the_rows_of_the_schedule_alone(site: Site) -> None:
    spec = {"dataset": site.pairs, "method": {"name": "dpo", "params": {}}, "training": TRAINING | {"max_steps": 2}}
    first = site.train("short", spec)
    (chunk,) = objects(site, "reference_logps/").values()
    # Two steps of four pairs.
    assert len(load(chunk)["responses"]) == 8

    whole = site.train("whole", spec | {"training": TRAINING | {"max_steps": None, "epochs": 1}})
    rows = sorted(len(load(each)["responses"]) for each in objects(site, "reference_logps/").values())
    assert rows == [8, len(PAIRS)]
    assert (first.kind, whole.kind) == ("succeeded", "succeeded")


def test_a_cancel_is_met_between_two_micro_batches_of_the_reference(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    original = ModelRunner.logps

    def logps(self: ModelRunner, groups: Any, **options: Any) -> Any:
        passes.append(len(groups))
        if len(passes) == 4:  # behind the proof of the layout
            next((site.home / "cancelled").glob("a*/")).joinpath("stop").write_text("cancel")
        return original(self, groups, **options)

    monkeypatch.setattr(ModelRunner, "logps", logps)
    spec = {"dataset": site.pairs, "method": {"name": "dpo", "params": {}}, "training": {"micro_batch_tokens": 16}}
    outcome = site.train("cancelled", spec)

    assert (outcome.kind, len(passes)) == ("stopped", 4)


def test_a_response_behind_another_prompt_stays_within_what_the_model_reads(site: Site) -> None:
    words = ("the film was good . " * 10).split()
    pairs = [
        PreferencePair(" ".join(words[:50]), "good .", "was .", row=1),
        PreferencePair("the film", " ".join(words[:40]), "was .", row=2),
    ]
    spec = {
        "dataset": stored(site, pairs),
        "method": {"name": "kto", "params": {}},
        "training": {"max_steps": 1, "global_batch_size": 2, "max_tokens": 1024},
    }
    with pytest.raises(InvalidPairError, match=r"row 1: no chosen response .* within training\.max_tokens=64 "):
        site.train("mismatched", spec)
