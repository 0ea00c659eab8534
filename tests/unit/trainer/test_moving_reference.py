"""A reference that follows the policy: how its weights move, with and without adapters, and what it says."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from madpo.losses.method import ReferenceUpdate
from madpo.models.logps import padded_logps
from madpo.types import PreferencePair
from madpo_trainer.fitted_rows import PolicyRow
from madpo_trainer.moving_reference import MovingReference, effective_weights

ROWS = [PolicyRow("a", PreferencePair("", "x", "y"), [1, 6], ([7, 2], [8, 9, 2]))]


@pytest.fixture
def initial(make_toy_lm):
    return make_toy_lm()


def follow(initial, policy, update: ReferenceUpdate, tensors=None) -> MovingReference:
    def run(groups, *, model):
        return padded_logps(model, groups)

    return MovingReference(copy.deepcopy(initial), policy, update, run=run, rows=ROWS, tensors=tensors or {})


def shift(model, by: float) -> None:
    """What a step of training does to the weights that it moves."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += by * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))


def adapted(initial):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(copy.deepcopy(initial), config).eval()


def logps_of(model):
    with torch.no_grad():
        return padded_logps(model, [ROWS[0].group]).logps


def test_it_says_what_the_initial_policy_says_until_it_moves(initial):
    policy = copy.deepcopy(initial)
    reference = follow(initial, policy, ReferenceUpdate(every=2, rate=1.0))
    shift(policy, 0.1)

    assert not reference.advance(1, 5.0)
    assert torch.equal(reference.logps([0]).logps, logps_of(initial))
    assert reference.advance(2, 5.0)
    assert torch.equal(reference.logps([0]).logps, logps_of(policy))
    assert not reference.logps([0]).logps.requires_grad


def test_it_mixes_the_policy_into_itself(initial):
    policy = copy.deepcopy(initial)
    reference = follow(initial, policy, ReferenceUpdate(every=1, rate=0.25))
    shift(policy, 0.1)

    reference.advance(1, 0.0)

    for moved, start, now in zip(reference.model.parameters(), initial.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(moved, 0.75 * start + 0.25 * now)


def test_it_waits_until_the_policy_is_far_enough_away(initial):
    policy = copy.deepcopy(initial)
    reference = follow(initial, policy, ReferenceUpdate(every=1, rate=1.0, kl_threshold=0.5))

    assert not reference.advance(1, 0.5)
    assert reference.advance(2, 0.51)


def test_adapters_are_merged_before_they_are_mixed(initial):
    policy = adapted(initial)
    reference = follow(initial, policy, ReferenceUpdate(every=1, rate=0.5))
    merged = copy.deepcopy(policy).merge_and_unload()

    reference.advance(1, 0.0)

    starts, mixed = dict(initial.named_parameters()), dict(reference.model.named_parameters())
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(
            mixed[name], (starts[name] + weight) / 2, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert effective_weights(policy).keys() == {
        f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in (0, 1) for part in ("q", "v")
    }
    torch.testing.assert_close(
        follow(initial, policy, ReferenceUpdate(every=1, rate=1.0)).logps([0]).logps, logps_of(initial)
    )


def test_a_policy_moves_on_by_a_share_of_the_way_it_came_from_where_training_left_it(initial):
    policy = copy.deepcopy(initial)
    reference = follow(initial, policy, ReferenceUpdate(every=1, rate=1.0, extrapolation=0.5))
    start = [weight.detach().clone() for weight in initial.parameters()]
    shift(policy, 0.1)
    trained = [weight.detach().clone() for weight in policy.parameters()]

    reference.advance(1, 0.0)
    moved_on = [weight.detach().clone() for weight in policy.parameters()]
    shift(policy, 0.1)
    trained_again = [weight.detach().clone() for weight in policy.parameters()]
    reference.advance(2, 0.0)

    for first, second, third, fourth, now, ref in zip(
        start, trained, moved_on, trained_again, policy.parameters(), reference.model.parameters(), strict=True
    ):
        torch.testing.assert_close(third, second + 0.5 * (second - first))
        torch.testing.assert_close(now, fourth + 0.5 * (fourth - second))
        assert torch.equal(ref, now)


@pytest.mark.parametrize("extrapolation", [0.0, 0.5])
def test_it_comes_back_from_a_checkpoint_bit_for_bit(initial, extrapolation: float):
    policy = copy.deepcopy(initial)
    update = ReferenceUpdate(every=1, rate=1.0 if extrapolation else 0.3, extrapolation=extrapolation)
    reference = follow(initial, policy, update)
    shift(policy, 0.1)
    reference.advance(1, 0.0)

    resumed_policy = copy.deepcopy(policy)
    resumed = follow(initial, resumed_policy, update, tensors=reference.tensors())
    for each, model in ((reference, policy), (resumed, resumed_policy)):
        shift(model, 0.2)
        each.advance(2, 0.0)

    for name, tensor in reference.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name
    for left, right in zip(policy.parameters(), resumed_policy.parameters(), strict=True):
        assert torch.equal(left, right)
