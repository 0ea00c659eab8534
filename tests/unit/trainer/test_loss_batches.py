"""What a loss reads of a micro-batch is what the model says of every response alone."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from madpo.data.loss_mask import counted_places
from madpo.data.order import Schedule
from madpo.jobs.training import TrainingParameters
from madpo.losses.method import Requirements
from madpo.models.logps import ResponseGroup, padded_logps
from madpo.types import PreferencePair
from madpo_trainer.fitted_rows import PolicyRow
from madpo_trainer.mismatched_responses import Mismatched
from madpo_trainer.model_runner import ModelRunner, choose_layout
from madpo_trainer.objectives.batches import BatchMaker
from madpo_trainer.ranks import OneRank


def pair_row(number: int, prompt: list[int], chosen: list[int], rejected: list[int], gold: list[int]) -> PolicyRow:
    pair = PreferencePair(
        "", "c", "r", chosen_uncertainty=number / 10, rejected_uncertainty=number / 5, semantic_distance=number / 4
    )
    return PolicyRow(str(number), pair, prompt, (chosen, rejected), gold_ids=gold)


PAIRS = [
    pair_row(0, [1, 6], [7, 2], [8, 9, 2], [6, 6, 6, 6, 2]),
    pair_row(1, [1], [10, 11, 9, 2], [2], [7, 2]),
    pair_row(2, [1, 6, 7], [2], [9, 2], [8, 8, 2]),
]
LISTS = [
    PolicyRow("a", PreferencePair("", "c", "r"), [1, 6], ([7, 2], [8, 9, 2], [6, 2]), (1, 2), (0.5, 2.0, -1.0)),
    PolicyRow("b", PreferencePair("", "c", "r"), [1], ([10, 2], [2]), (1, 0), (0.0, 1.0)),
]


@pytest.fixture
def models(make_toy_lm):
    return make_toy_lm(seed=0), make_toy_lm(seed=1)


def alone(model, prompt: list[int], ids: list[int]) -> tuple[float, list[float], list[float]]:
    """Sum, log-prob of each token, log of the sum of squared probabilities at each."""
    with torch.no_grad():
        found = padded_logps(model, [ResponseGroup(prompt, (ids,))], vocabulary=True)
    assert found.log_sum_p2 is not None
    return float(found.logps), found.token_logps.tolist(), found.log_sum_p2.tolist()


def runner(model) -> ModelRunner:
    parameters = TrainingParameters(micro_batch_tokens=20)
    layout = choose_layout(model, parameters, needs_head=True)
    return ModelRunner(model, layout, parameters=parameters, ranks=OneRank())


def maker(models, rows, requirements: Requirements, *, mismatched: Mismatched | None = None) -> BatchMaker:
    policy, reference = map(runner, models)
    stored = reference.all_logps([row.group for row in rows], tokens=requirements.token_logps)
    return BatchMaker(
        policy,
        rows,
        requirements=requirements,
        reference=stored,
        mismatched=mismatched,
        margin_temperature=2.0,
    )


def equal(found: Tensor | None, expected: list) -> None:
    assert found is not None
    torch.testing.assert_close(
        found.detach().float(), torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-4
    )


def of_pairs(models) -> Mapping[str, list]:
    policy, reference = models
    sides = {"chosen": 0, "rejected": 1}
    expected: dict[str, list] = {}
    for side, place in sides.items():
        for name, model in (("policy", policy), ("ref", reference)):
            expected[f"{name}_{side}_logps"] = [alone(model, row.prompt_ids, row.responses[place])[0] for row in PAIRS]
        expected[f"{side}_tokens"] = [len(row.responses[place]) for row in PAIRS]
    return expected


ORDER = [2, 0]
"""Rows of the micro-batch, not in the dataset's order."""


def test_pairs_with_a_gold_response_and_numbers(models):
    needs = Requirements(reference=True, margin=True, gold=True, uncertainty=True, semantic_distance=True)

    batch = maker(models, PAIRS, needs).batch(ORDER, {0: 3.0, 1: 9.0, 2: None})

    expected = {name: [values[row] for row in ORDER] for name, values in of_pairs(models).items()}
    expected["gold_logps"] = [alone(models[0], PAIRS[row].prompt_ids, PAIRS[row].gold_ids)[0] for row in ORDER]
    expected |= {"gold_tokens": [3, 5], "reward_margin": [0.0, 1.5], "semantic_distance": [0.5, 0.0]}
    expected |= {"chosen_uncertainty": [0.2, 0.0], "rejected_uncertainty": [0.4, 0.0]}
    for name, values in expected.items():
        equal(getattr(batch, name), values)
    assert batch.policy_chosen_logps.requires_grad
    assert batch.gold_logps.requires_grad
    assert batch.list_logps is batch.chosen_token_logps is batch.mismatched_logps is None


@pytest.mark.parametrize("gold", [False, True])
def test_single_tokens_beside_a_longer_gold_response(models, gold: bool):
    needs = Requirements(reference=True, token_logps=True, vocabulary=True, gold=gold)

    batch = maker(models, PAIRS, needs).batch(ORDER, {})

    for place, side in enumerate(("chosen", "rejected")):
        for position, row in enumerate(ORDER):
            ids = PAIRS[row].responses[place]
            mask = getattr(batch, f"{side}_token_mask")[position]
            assert mask.tolist() == [True] * len(ids) + [False] * (3 - len(ids))
            _, token_logps, log_sum_p2 = alone(models[0], PAIRS[row].prompt_ids, ids)
            equal(getattr(batch, f"{side}_token_logps")[position][mask], token_logps)
            equal(getattr(batch, f"{side}_log_sum_p2")[position][mask], log_sum_p2)
            equal(
                getattr(batch, f"ref_{side}_token_logps")[position][mask],
                alone(models[1], PAIRS[row].prompt_ids, ids)[1],
            )


def test_tokens_that_do_not_count_are_read_and_left_out_of_sums_and_lengths(models):
    masked = [replace(PAIRS[0], masks=((), (1, 1, 1))), replace(PAIRS[1], masks=((2, 1, 1), ()))]
    needs = Requirements(reference=True, token_logps=True, mismatched=True)
    schedule = Schedule(rows=2, batch_size=2, seed=0, total_rows=2)
    mismatched = Mismatched(masked, schedule, max_tokens=9)

    batch = maker(models, masked, needs).batch([0, 1], {})
    (first, second) = mismatched.groups(0, schedule.batch(0))

    counted = [row.counted for row in (masked[0].group, masked[1].group)]
    assert counted == [[2, 2], [3, 1]]
    for place, side in enumerate(("chosen", "rejected")):
        assert getattr(batch, f"{side}_tokens").tolist() == [counts[place] for counts in counted]
        for position, row in enumerate(masked):
            _, token_logps, _ = alone(models[0], row.prompt_ids, row.responses[place])
            kept = [token_logps[token] for token in counted_places(row.masks[place], len(token_logps))]
            equal(getattr(batch, f"policy_{side}_logps")[position], sum(kept))
            equal(getattr(batch, f"{side}_token_logps")[position][: len(kept)], kept)
            equal(getattr(batch, f"ref_{side}_logps")[position], runner_logp(models[1], row, place))
    assert sorted([first.masks, second.masks]) == [((),), ((2, 1, 1),)]


def runner_logp(model, row: PolicyRow, place: int) -> float:
    group = ResponseGroup(row.prompt_ids, (row.responses[place],), (row.masks[place],))
    with torch.no_grad():
        return float(padded_logps(model, [group]).logps)


def test_lists_of_unequal_length(models):
    batch = maker(models, LISTS, Requirements(reference=True, list=True)).batch([1, 0], {})

    b, a = ([alone(models[0], row.prompt_ids, ids)[0] for ids in row.responses] for row in (LISTS[1], LISTS[0]))
    ref_b, ref_a = ([alone(models[1], row.prompt_ids, ids)[0] for ids in row.responses] for row in (LISTS[1], LISTS[0]))
    assert batch.list_mask.tolist() == [[True, True, False], [True, True, True]]
    equal(batch.list_logps, [[*b, 0.0], a])
    equal(batch.ref_list_logps, [[*ref_b, 0.0], ref_a])
    equal(batch.list_scores, [[0.0, 1.0, 0.0], [0.5, 2.0, -1.0]])
    equal(batch.list_tokens, [[2, 1, 0], [2, 3, 2]])
    equal(batch.policy_chosen_logps, [b[1], a[1]])
    equal(batch.ref_rejected_logps, [ref_b[0], ref_a[2]])


def test_figures_run_the_policy_only_where_they_depend_on_it(models):
    schedule = Schedule.plan(rows=3, batch_size=3, seed=0, epochs=1, max_steps=None)
    mismatched = Mismatched(PAIRS, schedule, max_tokens=32)
    mismatched.compute_reference(lambda groups, tokens: runner(models[1]).all_logps(groups))
    needs = Requirements(reference=True, mismatched=True, global_batch=True)
    rows = schedule.batch(0)

    batch = maker(models, PAIRS, needs, mismatched=mismatched).figures_batch(0, rows, {})
    known = maker(models, PAIRS, Requirements(reference=True, policy_figures=True)).figures_batch(0, rows, {})

    assert all(map(math.isnan, batch.policy_chosen_logps.tolist()))
    groups = [
        (PAIRS[row].prompt_ids, PAIRS[other].responses[0])
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]
    equal(batch.mismatched_logps, [alone(models[0], *group)[0] for group in groups])
    equal(batch.ref_mismatched_logps, [alone(models[1], *group)[0] for group in groups])
    equal(known.policy_chosen_logps, [of_pairs(models)["policy_chosen_logps"][row] for row in rows])
    assert not known.policy_chosen_logps.requires_grad
