import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from madpo.errors import InternalError, InvalidArgumentError
from madpo.losses.dpo import DpoConfig, dpo_loss
from madpo.losses.madpo import MADPO, MadpoConfig, madpo_coefficient, madpo_weight
from madpo.losses.method import LossBatch, LossContext, Method
from madpo.losses.registry import METHODS

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "losses.json").read_text())
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
settings = pytest.mark.parametrize("setting", ["madpo_A", "madpo_B"])
methods = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def parameters(setting: str) -> dict[str, float]:
    values = VECTORS[setting]["params"]
    return {"c_max": values["cx"], "c_min": values["cn"], "lam": values["lam"], "tau": values["tau"]}


def shared_batch(dtype: torch.dtype = torch.float64) -> LossBatch:
    def column(name: str, *, grad: bool = False) -> Tensor:
        return torch.tensor(VECTORS["batch"][name], dtype=dtype, requires_grad=grad)

    return LossBatch(
        policy_chosen_logps=column("pi_w", grad=True),
        policy_rejected_logps=column("pi_l", grad=True),
        ref_chosen_logps=column("ref_w"),
        ref_rejected_logps=column("ref_l"),
        chosen_tokens=column("len_w"),
        rejected_tokens=column("len_l"),
        reward_margin=column("margin_h"),
    )


def rows(batch: LossBatch, index: Any) -> LossBatch:
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return LossBatch(**{name: column if column is None else column[index] for name, column in columns.items()})


def train_step(method: Method, config: Any, micro_batches: list[LossBatch]) -> Tensor:
    """One step's loss the way `madpo.losses.method` tells the caller to form it."""
    context = LossContext(stats=stats_of(method, config, micro_batches))
    outputs = [method.loss(config, batch, context) for batch in micro_batches]
    masks = [torch.ones_like(out.per_pair) if out.mask is None else out.mask for out in outputs]
    total = torch.stack([(mask * out.per_pair).sum() for mask, out in zip(masks, outputs, strict=True)]).sum()
    aux = [value for out in outputs for value in out.aux.values()]
    return total / torch.cat(masks).sum() + sum(aux)


def stats_of(method: Method, config: Any, micro_batches: list[LossBatch]) -> dict[str, Tensor]:
    if not method.requirements(config).global_batch:
        return {}
    assert method.observe is not None
    parts = [method.observe(config, batch) for batch in micro_batches]
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def configurations() -> list[Any]:
    return [
        *(pytest.param(method, method.config(), id=name) for name, method in METHODS.items()),
        pytest.param(METHODS["dpo"], DpoConfig(label_smoothing=0.1), id="cdpo"),
        pytest.param(MADPO, MadpoConfig(c_max=4, c_min=0.25, tau=2), id="madpo-4"),
        pytest.param(MADPO, MadpoConfig(mode="amp_only", tau=2), id="madpo-amp_only"),
        pytest.param(MADPO, MadpoConfig(mode="reg_only", tau=2), id="madpo-reg_only"),
        pytest.param(MADPO, MadpoConfig(clip_negative=False, tau=2), id="madpo-unclipped"),
        pytest.param(MADPO, MadpoConfig(normalize_weights=True, tau=2), id="madpo-normalized"),
    ]


configured = pytest.mark.parametrize(("method", "config"), configurations())


# Vectors


@dtypes
def test_dpo_matches_its_vectors(dtype: torch.dtype) -> None:
    batch = shared_batch(dtype)

    loss = train_step(METHODS["dpo"], DpoConfig(beta=0.1), [batch])
    loss.backward()
    smoothed = dpo_loss(batch.log_ratio_diff, beta=0.1, label_smoothing=0.1)

    close(dpo_loss(batch.log_ratio_diff, beta=0.1), VECTORS["dpo"]["each"], dtype)
    close(loss, VECTORS["dpo"]["mean"], dtype)
    close(batch.policy_chosen_logps.grad, VECTORS["dpo"]["grad_pi_w"], dtype)
    close(smoothed, VECTORS["cdpo_eps0.1"]["each"], dtype)


@dtypes
@settings
def test_madpo_coefficients_and_weights_match_their_vectors(setting: str, dtype: torch.dtype) -> None:
    vector = VECTORS[setting]
    h = torch.tensor(vector["h"], dtype=dtype)

    close(madpo_coefficient(h, **parameters(setting)), vector["c"], dtype)
    close(madpo_weight(h, **parameters(setting)), vector["w"], dtype)


@dtypes
@settings
def test_madpo_loss_and_gradient_match_their_vectors(setting: str, dtype: torch.dtype) -> None:
    vector, batch = VECTORS[setting], shared_batch(dtype)
    output = MADPO.loss(MadpoConfig(beta=0.1, **parameters(setting)), batch, LossContext())

    output.per_pair.mean().backward()

    close(output.weight, vector["batch_w"], dtype)
    close(output.metrics["madpo/coefficient"], vector["batch_c"], dtype)
    close(output.per_pair, vector["batch_loss_each"], dtype)
    close(output.per_pair.mean(), vector["batch_loss_mean"], dtype)
    close(batch.policy_chosen_logps.grad, vector["grad_pi_w"], dtype)
    close(batch.policy_rejected_logps.grad, [-value for value in vector["grad_pi_w"]], dtype)


@settings
def test_madpo_weight_has_its_known_extremes(setting: str) -> None:
    easy = torch.linspace(parameters(setting)["tau"], 40, 400_001, dtype=torch.float64)
    doubted = torch.linspace(-parameters(setting)["tau"], 0, 400_001, dtype=torch.float64)[1:-1]
    hard = torch.linspace(0, parameters(setting)["tau"], 400_001, dtype=torch.float64)

    for h, extreme, at in ((easy, "min_w_easy", "argmin"), (doubted, "min_w", "argmin"), (hard, "max_w", "argmax")):
        weight = madpo_weight(h, **parameters(setting))
        found = getattr(weight, at)()
        assert [float(h[found]), float(weight[found])] == pytest.approx(VECTORS[setting][extreme], abs=1e-3, rel=1e-6)


def close(actual: Tensor | None, expected: Any, dtype: torch.dtype) -> None:
    assert actual is not None
    assert actual.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)


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
    batch = shared_batch()
    exact = train_step(MADPO, MadpoConfig(**bounds), [batch])
    near = {name: 1 + math.copysign(1e-9, 1 if name == "c_max" else -1) for name in bounds}
    limit = train_step(MADPO, MadpoConfig(**near), [batch])

    dpo = train_step(METHODS["dpo"], DpoConfig(), [batch])
    assert torch.equal(exact, dpo)
    torch.testing.assert_close(limit, dpo, rtol=0, atol=1e-6)


@settings
def test_the_gradient_is_the_weight_times_that_of_dpo(setting: str) -> None:
    weighted, plain = shared_batch(), shared_batch()
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
    batch, config = shared_batch(), MadpoConfig(normalize_weights=True, tau=2)
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


# Properties of every method


@configured
def test_gradients_agree_with_finite_differences(method: Method, config: Any) -> None:
    batch = shared_batch()

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return train_step(method, config, [replace(batch, policy_chosen_logps=chosen, policy_rejected_logps=rejected)])

    assert torch.autograd.gradcheck(loss, (batch.policy_chosen_logps, batch.policy_rejected_logps))


@configured
def test_two_halves_equal_the_whole(method: Method, config: Any) -> None:
    whole, halves = shared_batch(), shared_batch()

    loss = train_step(method, config, [whole])
    split = train_step(method, config, [rows(halves, slice(0, 2)), rows(halves, slice(2, 4))])
    loss.backward()
    split.backward()

    torch.testing.assert_close(split, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(halves.policy_chosen_logps.grad, whole.policy_chosen_logps.grad, rtol=1e-12, atol=0)


@configured
def test_the_order_of_pairs_does_not_matter(method: Method, config: Any) -> None:
    batch, order = shared_batch(), [2, 0, 3, 1]
    context = LossContext(stats=stats_of(method, config, [batch]))

    output = method.loss(config, batch, context)
    shuffled = method.loss(config, rows(batch, order), context)

    torch.testing.assert_close(shuffled.per_pair, output.per_pair[order], rtol=0, atol=0)
    torch.testing.assert_close(shuffled.weight, output.weight[order], rtol=0, atol=0)


@configured
def test_no_gradient_reaches_margins_or_weights(method: Method, config: Any) -> None:
    batch = shared_batch()
    batch.require("reward_margin").requires_grad_()

    output = method.loss(config, batch, LossContext(stats=stats_of(method, config, [batch])))
    output.per_pair.sum().backward()

    assert batch.require("reward_margin").grad is None
    assert not output.weight.requires_grad
    assert not any(metric.requires_grad for metric in output.metrics.values())


@configured
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_margins_stay_finite(method: Method, config: Any, dtype: torch.dtype) -> None:
    extremes = torch.tensor([0, 1e-6, 1, 88, 104, 1e3, 1e6], dtype=dtype)
    extremes = torch.cat([extremes, -extremes])
    h, delta = (axis.flatten() for axis in torch.meshgrid(extremes, extremes, indexing="ij"))
    zeros = torch.zeros_like(h)
    batch = LossBatch(
        policy_chosen_logps=(delta / 2).requires_grad_(),
        policy_rejected_logps=(-delta / 2).requires_grad_(),
        ref_chosen_logps=zeros,
        ref_rejected_logps=zeros,
        chosen_tokens=zeros + 1,
        rejected_tokens=zeros + 1,
        reward_margin=h,
    )
    train_step(method, config, [batch]).backward()
    output = method.loss(config, batch, LossContext(stats=stats_of(method, config, [batch])))

    for values in (output.per_pair, output.weight, batch.policy_chosen_logps.grad, batch.policy_rejected_logps.grad):
        assert values is not None
        assert bool(values.isfinite().all())
    assert bool((output.weight >= 0).all())


@methods
def test_a_missing_input_is_named(method: Method) -> None:
    batch = LossBatch(policy_chosen_logps=torch.zeros(2), policy_rejected_logps=torch.zeros(2))

    with pytest.raises(InternalError, match=r"ref_chosen_logps|reward_margin"):
        method.loss(method.config(), batch, LossContext())
