"""Rows of pairs and lists with their tokens; what does not fit or is missing is named by its row."""

import json
from dataclasses import replace
from functools import partial

import pytest

from madpo.errors import InvalidPairError
from madpo.losses.method import Requirements
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.local_copies import LocalCopies
from madpo.storage.tokens import TokenStore
from madpo.types import DatasetKind, Job, JobKind, JobState, PreferencePair, ResponseList
from madpo.worker.phase import Phase
from madpo.worker.workspace import Run
from madpo_trainer.fitted_rows import require_columns, row_groups
from madpo_trainer.mapped_rows import MappedRows
from madpo_trainer.training_rows import TrainingRows

JOB = Job("job-" + "0" * 32, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, attempt=1)
PAIR = PreferencePair("the film", "was good", "was bad", row=1, gold="was good good good")
RANKED = ResponseList("the film", ("was", "good", "bad", "the"), (0.0, 2.0, 2.0, -1.0), row=1)


@pytest.fixture
def read(tmp_path, make_toy_tokenizer):
    store, tokenizer = LocalStore(tmp_path / "store"), make_toy_tokenizer()
    datasets = DatasetStore(store)
    embeddings = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": embeddings}))

    def read(*rows, max_tokens=32, lists=False, gold=False):
        kind = DatasetKind.LIST if isinstance(rows[0], ResponseList) else DatasetKind.PREFERENCE
        dataset, _ = datasets.write(rows, kind=kind, display_name="", scratch=tmp_path / "scratch")
        reader = TrainingRows(
            datasets,
            TokenStore(store),
            copies=LocalCopies(tmp_path / "cache"),
            directory=tmp_path / "model",
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            overlong="error",
        )
        reader.prepare(dataset.dataset_id, scratch=tmp_path / "scratch", phase=partial(Phase, Run(tmp_path, JOB)))
        return reader.policy_rows(dataset.dataset_id, lists=lists, gold=gold)

    return read


def test_a_pair_has_two_responses_and_its_gold_one_where_it_is_asked_for(read):
    (row,), (with_gold,) = read(PAIR), read(PAIR, gold=True)

    assert row.row_id == PAIR.pair_id
    assert [len(ids) for ids in row.responses] == [3, 3]
    assert row.gold_ids is None
    assert with_gold.gold_ids is not None
    assert len(with_gold.gold_ids) == 5
    assert with_gold.group == row.group


def test_a_list_keeps_all_responses_or_becomes_its_best_against_its_worst(read):
    (ranked,), (pair,) = read(RANKED, lists=True), read(RANKED)

    assert (ranked.row_id, ranked.scores) == (RANKED.list_id, RANKED.scores)
    assert len(ranked.responses) == 4
    assert ranked.chosen_and_rejected == (1, 3)
    assert (pair.pair.chosen, pair.pair.rejected) == ("good", "the")
    assert pair.row_id == RANKED.as_pair().pair_id
    assert pair.responses == (ranked.responses[1], ranked.responses[3])


def test_what_is_too_long_or_missing_is_named_by_its_row(read):
    second = replace(PAIR, chosen="was", row=2, gold=None)

    with pytest.raises(
        InvalidPairError,
        match=r"1 of 2 rows are longer than training\.max_tokens=7 .*; the first: 1 \(raise max_tokens, or let",
    ):
        read(PAIR, replace(second, gold="was"), max_tokens=7, gold=True)
    with pytest.raises(InvalidPairError, match=r"row 2\.gold is missing"):
        read(PAIR, second, gold=True)
    with pytest.raises(InvalidPairError, match=r"row 1\.semantic_distance is missing"):
        require_columns(read(PAIR), Requirements(semantic_distance=True))
    require_columns(read(PAIR), Requirements(reference=True))


def test_rows_as_long_as_the_model_reads_are_not_to_be_kept_by_a_larger_max_tokens(read, tmp_path):
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 7}))

    with pytest.raises(InvalidPairError, match=r"\(shorten them, as the model reads no more than 7 tokens, or let"):
        read(PAIR, replace(PAIR, gold="was", row=2), max_tokens=7, gold=True)


def test_rows_with_tokens_that_the_model_does_not_embed_are_named(read):
    bad = [replace(PAIR, chosen="was <tool>", row=2), replace(PAIR, prompt="<tool> film", row=3)]

    with pytest.raises(InvalidPairError, match="row 2: the model has no embedding for the token '<tool>'") as raised:
        read(PAIR, *bad)

    assert [violation.field for violation in raised.value.violations] == ["row 2", "row 3"]
    assert "resize_token_embeddings" in str(raised.value)


def test_rows_are_run_without_a_look_at_their_text(read, monkeypatch):
    lists = ResponseList("the", ("film", "was", "good"), (0.0, 2.0, 1.0), row=1)
    sets = [read(PAIR), read(PAIR, gold=True), read(lists), read(lists, lists=True)]
    expected = [[row.group for row in rows] for rows in sets]
    monkeypatch.delattr(MappedRows, "row")

    assert [list(row_groups(rows)) for rows in sets] == expected
