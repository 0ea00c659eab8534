import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from madpo.errors import InvalidArgumentError
from madpo.losses.dpo import DPO, DpoConfig, dpo_loss
from madpo.losses.madpo import MADPO, MadpoConfig, madpo_coefficient, madpo_weight
from madpo.losses.method import LossContext
from tests.unit.losses.batches import VECTORS, full_batch, train_step
from tests.unit.losses.vectors import close

settings = pytest.mark.parametrize("setting", ["madpo_A", "madpo_B"])


def parameters(setting: str) -> dict[str, float]:
    values = VECTORS[setting]["params"]
    return {"c_max": values["cx"], "c_min": values["cn"], "lam": values["lam"], "tau": values["tau"]}


@settings
def test_madpo_weight_has_its_known_extremes(setting: str) -> None:
    easy = torch.linspace(parameters(setting)["tau"], 40, 400_001, dtype=torch.float64)
    doubted = torch.linspace(-parameters(setting)["tau"], 0, 400_001, dtype=torch.float64)[1:-1]
    hard = torch.linspace(0, parameters(setting)["tau"], 400_001, dtype=torch.float64)

    for h, extreme, at in ((easy, "min_w_easy", "argmin"), (doubted, "min_w", "argmin"), (hard, "max_w", "argmax")):
        weight = madpo_weight(h, **parameters(setting))
        found = getattr(weight, at)()
        assert [float(h[found]), float(weight[found])] == pytest.approx(VECTORS[setting][extreme], abs=1e-3, rel=1e-6)


# An independent implementation: the published formulas, one pair at a time, in plain floats


def plain_coefficient(h: float, *, c_max: float, c_min: float, lam: float, tau: float) -> float:
    k = (c_max - 1) / (1 - c_min)
    return c_min + (c_max - c_min) / (1 + k * math.exp(lam * (abs(h) - tau)))


def plain_weight(h: float, **params: float) -> float:
    if h <= -params["tau"]:
        return 1.0
    return (1 / (1 + math.exp(-plain_coefficient(h, **params) * h))) / (1 / (1 + math.exp(-h)))


@pytest.mark.parametrize("c_max", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("c_min", [0.25, 0.9])
@pytest.mark.parametrize("lam", [0.5, 3.0])
@pytest.mark.parametrize("tau", [1.0, 6.9])
def test_madpo_agrees_with_the_plain_formulas(c_max: float, c_min: float, lam: float, tau: float) -> None:
    params = {"c_max": c_max, "c_min": c_min, "lam": lam, "tau": tau}
    margins = [step / 7 for step in range(-70, 71)]
    h = torch.tensor(margins, dtype=torch.float64)
    log_ratio_diff = torch.linspace(-30, 30, len(margins), dtype=torch.float64)

    loss = madpo_weight(h, **params) * dpo_loss(log_ratio_diff, beta=0.3)

    expected = [
        plain_weight(margin, **params) * math.log(1 + math.exp(-0.3 * d))
        for margin, d in zip(margins, log_ratio_diff.tolist(), strict=True)
    ]
    close(madpo_coefficient(h, **params), [plain_coefficient(margin, **params) for margin in margins], torch.float64)
    close(loss, expected, torch.float64)


# Identities


@pytest.mark.parametrize("c_max", [1.001, 2.0, 10.0])
@pytest.mark.parametrize("c_min", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("lam", [0.1, 1.0, 5.0])
def test_the_coefficient_falls_from_c_max_over_one_at_tau_to_c_min(c_max: float, c_min: float, lam: float) -> None:
    coefficient = coefficients(c_max=c_max, c_min=c_min, lam=lam, tau=3.0)

    assert float(coefficient(3.0)) == pytest.approx(1, abs=1e-12)
    assert float(coefficient(-3.0)) == pytest.approx(1, abs=1e-12)
    assert bool((coefficient(torch.arange(0, 6, 0.1, dtype=torch.float64)).diff() < 0).all())
    assert float(coefficient(0.0)) < c_max
    assert float(coefficient(1e4)) == pytest.approx(c_min)
    sharp = coefficients(c_max=c_max, c_min=c_min, lam=100.0, tau=3.0)
    assert float(sharp(0.0)) == pytest.approx(c_max)


def coefficients(**params: float) -> Callable[[Any], Tensor]:
    return lambda h: madpo_coefficient(torch.as_tensor(h, dtype=torch.float64), **params)


@settings
def test_the_weight_is_one_at_zero_and_tau_and_from_minus_tau_down(setting: str) -> None:
    tau = parameters(setting)["tau"]
    weight = madpo_weight(torch.tensor([0.0, tau, -tau, -tau - 1e-9, -1e3], dtype=torch.float64), **parameters(setting))

    torch.testing.assert_close(weight, torch.ones_like(weight), rtol=0, atol=1e-12)
    assert weight[2:].tolist() == [1.0, 1.0, 1.0]
    just_above = madpo_weight(torch.tensor([-tau + 1e-9], dtype=torch.float64), **parameters(setting))
    torch.testing.assert_close(just_above, torch.ones_like(just_above), rtol=0, atol=1e-6)
    far = madpo_weight(torch.tensor([200.0], dtype=torch.float64), **parameters(setting))
    torch.testing.assert_close(far, torch.ones_like(far))


@settings
def test_the_weight_stays_in_its_ranges(setting: str) -> None:
    tau = parameters(setting)["tau"]
    inside = torch.linspace(0, tau, 102, dtype=torch.float64)[1:-1]

    hard, doubted = madpo_weight(inside, **parameters(setting)), madpo_weight(-inside, **parameters(setting))
    easy = madpo_weight(tau + inside, **parameters(setting))

    assert bool(((hard > 1) & (hard < 2)).all())
    assert bool(((doubted > 0) & (doubted < 1)).all())
    assert bool((easy < 1).all())


@pytest.mark.parametrize("bounds", [{"c_max": 1.0, "c_min": 1.0}, {"c_max": 1.0}, {"c_min": 1.0}])
def test_a_bound_of_one_gives_dpo_as_do_the_formulas_limits(bounds: dict[str, float]) -> None:
    batch = full_batch()
    exact = train_step(MADPO, MadpoConfig(**bounds), batch).loss
    near = {name: 1 + math.copysign(1e-9, 1 if name == "c_max" else -1) for name in bounds}
    limit = train_step(MADPO, MadpoConfig(**near), batch).loss

    dpo = train_step(DPO, DpoConfig(), batch).loss
    assert torch.equal(exact, dpo)
    torch.testing.assert_close(limit, dpo, rtol=0, atol=1e-6)


@settings
def test_the_gradient_is_the_weight_times_that_of_dpo(setting: str) -> None:
    weighted, plain = full_batch(), full_batch()
    output = MADPO.loss(MadpoConfig(**parameters(setting)), weighted, LossContext())

    output.per_pair.mean().backward()
    dpo_loss(plain.log_ratio_diff, beta=0.1).mean().backward()

    expected = -0.1 / 4 * output.weight * torch.sigmoid(-0.1 * plain.log_ratio_diff.detach())
    torch.testing.assert_close(weighted.policy_chosen_logps.grad, expected)
    assert plain.policy_chosen_logps.grad is not None
    torch.testing.assert_close(weighted.policy_chosen_logps.grad, output.weight * plain.policy_chosen_logps.grad)


@settings
def test_the_expected_loss_is_least_at_the_target_margin(setting: str) -> None:
    h = torch.tensor(VECTORS[setting]["h"], dtype=torch.float64)
    for_label = torch.sigmoid(h) * madpo_weight(h, **parameters(setting))
    against_label = torch.sigmoid(-h) * madpo_weight(-h, **parameters(setting))

    def slope(u: Tensor) -> Tensor:
        u = u.clone().requires_grad_()
        (for_label * dpo_loss(u, beta=1.0) + against_label * dpo_loss(-u, beta=1.0)).sum().backward()
        assert u.grad is not None
        return u.grad

    low, high = torch.full_like(h, -30), torch.full_like(h, 30)
    for _ in range(80):
        middle = (low + high) / 2
        falling = slope(middle) < 0
        low, high = torch.where(falling, middle, low), torch.where(falling, high, middle)

    torch.testing.assert_close(
        low, torch.tensor(VECTORS[setting]["target_margin"], dtype=torch.float64), rtol=0, atol=1e-7
    )
    inside = h.abs() <= parameters(setting)["tau"]
    torch.testing.assert_close(
        low[inside], (madpo_coefficient(h, **parameters(setting)) * h)[inside], rtol=0, atol=1e-7
    )


def test_modes_keep_one_side_of_the_coefficient() -> None:
    h = torch.tensor([-5.0, -0.5, 0.5, 3.0, 5.0])
    full, amp, reg = (
        madpo_coefficient(h, **parameters("madpo_A"), mode=mode) for mode in ("full", "amp_only", "reg_only")
    )

    torch.testing.assert_close(amp, full.clamp(min=1))
    torch.testing.assert_close(reg, full.clamp(max=1))
    assert bool((madpo_weight(h, **parameters("madpo_A"), mode="amp_only")[3:] == 1).all())
    assert bool((madpo_weight(h, **parameters("madpo_A"), mode="reg_only")[1:3] == 1).all())


def test_without_the_clip_the_formula_goes_on_below_minus_tau() -> None:
    h = torch.tensor([-3.5, -0.5, 0.8], dtype=torch.float64)
    c = madpo_coefficient(h, **parameters("madpo_A"))

    weight = madpo_weight(h, **parameters("madpo_A"), clip_negative=False)

    torch.testing.assert_close(weight, torch.sigmoid(c * h) / torch.sigmoid(h))
    assert float(weight[0]) > 1


def test_normalized_weights_have_mean_one() -> None:
    batch, config = full_batch(), MadpoConfig(normalize_weights=True, tau=2)
    assert MADPO.observe is not None

    output = MADPO.loss(config, batch, LossContext(stats=MADPO.observe(config, batch)))

    assert float(output.weight.mean()) == pytest.approx(1)
    assert not MADPO.requirements(MadpoConfig()).global_batch


@pytest.mark.parametrize(
    "bad", [{"c_max": 0.9}, {"c_min": 1.1}, {"c_min": 0.0}, {"lam": 0.0}, {"tau": -1.0}, {"tau": math.nan}]
)
def test_parameters_outside_their_range_are_refused(bad: dict[str, float]) -> None:
    (name,) = bad
    with pytest.raises(InvalidArgumentError, match=name):
        madpo_weight(torch.zeros(1), **parameters("madpo_A") | bad)


def test_weights_depend_on_neither_beta_nor_policy_and_scale_log_2_at_small_beta() -> None:
    batch = full_batch()
    small, large = (MADPO.loss(MadpoConfig(beta=beta), batch, LossContext()) for beta in (1e-12, 10.0))

    assert torch.equal(small.weight, large.weight)
    torch.testing.assert_close(small.per_pair.mean(), math.log(2) * small.weight.mean())
