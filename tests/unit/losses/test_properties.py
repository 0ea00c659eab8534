"""What holds for every method of the registry, with its defaults and with other parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from safetensors.torch import load_file, save_file
from torch import Tensor

from madpo.errors import InternalError, InvalidArgumentError
from madpo.losses.method import LossBatch, LossContext, Method, MethodConfig, requirement_names
from madpo.losses.registry import parse_params
from tests.unit.losses.batches import (
    OF_THE_POLICY,
    WITH_GRADIENT,
    full_batch,
    gradients,
    observed,
    take,
    train_step,
    with_gradient,
)
from tests.unit.losses.configurations import configured, methods

# A batch carries a field when all requirements that stand beside it are met; fields not listed here it always has.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "ref_chosen_logps": ("reference",),
    "ref_rejected_logps": ("reference",),
    "chosen_tokens": ("lengths",),
    "rejected_tokens": ("lengths",),
    "reward_margin": ("margin",),
    "chosen_token_logps": ("token_logps",),
    "rejected_token_logps": ("token_logps",),
    "ref_chosen_token_logps": ("reference", "token_logps"),
    "ref_rejected_token_logps": ("reference", "token_logps"),
    "chosen_token_mask": ("token_logps",),
    "rejected_token_mask": ("token_logps",),
    "chosen_log_sum_p2": ("vocabulary",),
    "rejected_log_sum_p2": ("vocabulary",),
    "gold_logps": ("gold",),
    "gold_tokens": ("gold",),
    "chosen_uncertainty": ("uncertainty",),
    "rejected_uncertainty": ("uncertainty",),
    "semantic_distance": ("semantic_distance",),
    "mismatched_logps": ("mismatched",),
    "ref_mismatched_logps": ("mismatched", "reference"),
    "list_logps": ("list",),
    "ref_list_logps": ("list", "reference"),
    "list_tokens": ("list", "lengths"),
    "list_scores": ("list",),
    "list_mask": ("list",),
}
SPLITS = ([[0, 1], [2, 3]], [[0], [1, 2, 3]], [[3, 1], [0], [2]])


def carried(batch: LossBatch, flags: set[str]) -> LossBatch:
    """The batch a caller makes for a method with these requirements."""
    return replace(batch, **{name: None for name, needs in FIELDS.items() if not flags.issuperset(needs)})


def assert_same_gradients(actual: LossBatch, expected: LossBatch) -> None:
    found, wanted = gradients(actual), gradients(expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-14, msg=lambda t, n=name: f"{n}: {t}")


def test_every_field_of_a_batch_belongs_to_a_requirement() -> None:
    assert FIELDS.keys() == {field.name for field in fields(LossBatch)} - {
        "policy_chosen_logps",
        "policy_rejected_logps",
    }


# Gradients


@contextmanager
def constants_held(values: list[Tensor], *, record: bool) -> Iterator[None]:
    """Take down what `detach` returns, or return what was taken down, so that a constant stays one when inputs move."""
    detach, left = Tensor.detach, iter(list(values))

    def held(tensor: Tensor) -> Tensor:
        if not record:
            return next(left)
        values.append(detach(tensor).clone())
        return values[-1]

    Tensor.detach = held  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.detach = detach  # type: ignore[method-assign]


@configured
def test_gradients_pass_gradcheck(method: Method, config: MethodConfig) -> None:
    batch = full_batch()
    stats = observed(method, config, batch, [range(4)]) if method.requirements(config).global_batch else {}
    constants: list[Tensor] = []
    with constants_held(constants, record=True):
        train_step(method, config, batch, stats=stats).loss.backward()
    assert any(bool(slope.any()) for slope in gradients(batch).values())

    def loss_at(*leaves: Tensor) -> Tensor:
        there = replace(batch, **dict(zip(WITH_GRADIENT, leaves, strict=True)))
        with constants_held(constants, record=False):
            return train_step(method, config, there, stats=stats).loss

    leaves = [getattr(batch, name) for name in WITH_GRADIENT]
    assert torch.autograd.gradcheck(loss_at, leaves, eps=1e-6, rtol=1e-6, atol=1e-7)


@configured
def test_no_gradient_reaches_reference_margins_or_weights(method: Method, config: MethodConfig) -> None:
    batch = full_batch()
    constant = [
        value
        for field in fields(batch)
        if field.name not in WITH_GRADIENT and (value := getattr(batch, field.name)).is_floating_point()
    ]
    for value in constant:
        value.requires_grad_()

    step = train_step(method, config, batch)
    step.loss.backward()

    assert all(value.grad is None for value in constant)
    for output in step.outputs:
        assert output.per_pair.requires_grad
        figures = [output.weight, *output.metrics.values(), *(output.state or {}).values()]
        assert not any(figure.requires_grad for figure in figures)


# Global batches


@configured
@pytest.mark.parametrize("split", SPLITS, ids=["halves", "one-and-three", "dealt"])
def test_any_split_equals_the_whole(method: Method, config: MethodConfig, split: list[list[int]]) -> None:
    whole, parts = full_batch(), full_batch()

    one = train_step(method, config, whole)
    some = train_step(method, config, parts, split=split)
    one.loss.backward()
    some.loss.backward()

    torch.testing.assert_close(some.loss, one.loss, rtol=1e-12, atol=0)
    assert_same_gradients(parts, whole)
    assert some.state.keys() == one.state.keys()
    for name, value in one.state.items():
        torch.testing.assert_close(some.state[name], value, rtol=1e-12, atol=0)
    for rows, part in zip(split, some.outputs, strict=True):
        torch.testing.assert_close(part.weight, one.outputs[0].weight[rows], rtol=1e-12, atol=0)


@configured
def test_the_order_of_pairs_does_not_matter(method: Method, config: MethodConfig) -> None:
    if method.requirements(config).stochastic:
        pytest.skip("its draws go by place")
    batch, shuffled = full_batch(), full_batch()
    order = [2, 0, 3, 1]

    step = train_step(method, config, batch)
    other = train_step(method, config, take(shuffled, order))
    step.loss.backward()
    other.loss.backward()

    torch.testing.assert_close(other.loss, step.loss, rtol=1e-12, atol=0)
    assert_same_gradients(shuffled, batch)
    torch.testing.assert_close(other.outputs[0].weight, step.outputs[0].weight[order], rtol=1e-12, atol=0)


@configured
def test_outputs_have_one_figure_for_each_pair(method: Method, config: MethodConfig) -> None:
    step = train_step(method, config, full_batch())
    (output,) = step.outputs

    for figure in (output.per_pair, output.weight, *output.metrics.values()):
        assert figure.shape == (4,)
        assert figure.is_floating_point()
    assert all(term.shape == () for term in output.aux.values())
    assert (output.mask is None) == (output.kept is None)
    assert step.loss.shape == ()


# Numerical range


def extreme_batch(dtype: torch.dtype) -> LossBatch:
    """Log-ratios and margins up to 1e6 of either sign, in all combinations; log-probs are at most 0."""
    magnitudes = torch.tensor([0, 1e-6, 1, 88, 104, 1e3, 1e6])
    values = torch.cat([magnitudes, -magnitudes[1:]])
    chosen, rejected, margin = (axis.flatten() for axis in torch.meshgrid(values, values, values, indexing="ij"))

    def policy(log_ratio: Tensor) -> Tensor:
        return log_ratio.clamp(max=0)

    def reference(log_ratio: Tensor) -> Tensor:
        return (-log_ratio).clamp(max=0)

    ratios = torch.stack([chosen, rejected, margin, torch.zeros_like(margin)], dim=1)
    ones = torch.ones_like(margin)
    columns = {
        "policy_chosen_logps": policy(chosen),
        "policy_rejected_logps": policy(rejected),
        "ref_chosen_logps": reference(chosen),
        "ref_rejected_logps": reference(rejected),
        "reward_margin": margin,
        "chosen_token_logps": torch.stack([policy(chosen) / 2] * 2, dim=1),
        "rejected_token_logps": policy(rejected)[:, None],
        "ref_chosen_token_logps": torch.stack([reference(chosen) / 2] * 2, dim=1),
        "ref_rejected_token_logps": reference(rejected)[:, None],
        "chosen_log_sum_p2": torch.stack([reference(chosen) / 2] * 2, dim=1),
        "rejected_log_sum_p2": reference(rejected)[:, None],
        "gold_logps": policy(margin),
        "chosen_uncertainty": margin.abs(),
        "rejected_uncertainty": chosen.abs(),
        "semantic_distance": margin.abs().clamp(max=2),
        "mismatched_logps": policy(rejected),
        "ref_mismatched_logps": reference(rejected),
        "list_logps": policy(ratios),
        "ref_list_logps": reference(ratios),
        "list_scores": torch.stack([margin, -margin, ones, 0 * ones], dim=1),
    }
    batch = LossBatch(
        **{name: column.to(dtype) for name, column in columns.items()},
        chosen_tokens=ones.long() + 1,
        rejected_tokens=ones.long(),
        gold_tokens=ones.long(),
        list_tokens=torch.ones_like(ratios).long(),
        chosen_token_mask=torch.ones(len(margin), 2, dtype=torch.bool),
        rejected_token_mask=torch.ones(len(margin), 1, dtype=torch.bool),
        list_mask=torch.ones_like(ratios).bool(),
    )
    return with_gradient(batch)


@configured
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extremes_stay_finite(method: Method, config: MethodConfig, dtype: torch.dtype) -> None:
    batch = extreme_batch(dtype)

    step = train_step(method, config, batch)
    step.loss.backward()

    (output,) = step.outputs
    figures = {"loss": step.loss, "per_pair": output.per_pair, "weight": output.weight, **gradients(batch)}
    for name, values in (figures | dict(output.metrics) | step.state).items():
        assert bool(values.isfinite().all()), name
    assert output.per_pair.dtype == dtype
    assert bool((output.weight >= 0).all())


@configured
def test_float32_agrees_with_float64(method: Method, config: MethodConfig) -> None:
    exact, single = full_batch(), full_batch(torch.float32)

    double_step, single_step = train_step(method, config, exact), train_step(method, config, single)
    double_step.loss.backward()
    single_step.loss.backward()

    torch.testing.assert_close(single_step.loss.double(), double_step.loss, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(exact).items():
        torch.testing.assert_close(gradients(single)[name].double(), gradient, rtol=1e-4, atol=1e-5)


# State and chance


@configured
def test_state_moves_in_training_alone_and_survives_a_checkpoint(
    method: Method, config: MethodConfig, tmp_path: Path
) -> None:
    first = train_step(method, config, full_batch())
    assert bool(first.state) == method.requirements(config).stateful
    if not first.state:
        return
    save_file(first.state, tmp_path / "state.safetensors")
    restored = load_file(tmp_path / "state.safetensors")

    def second(state: Mapping[str, Tensor], *, training: bool = True) -> Any:
        batch = full_batch()
        moved = replace(batch, policy_chosen_logps=(batch.policy_chosen_logps.detach() + 0.7).requires_grad_())
        return train_step(method, config, moved, state=state, seed=1, training=training)

    straight, resumed, held_out = second(first.state), second(restored), second(first.state, training=False)

    assert torch.equal(resumed.loss, straight.loss)
    assert all(torch.equal(resumed.state[name], value) for name, value in straight.state.items())
    assert not all(torch.equal(first.state[name], value) for name, value in straight.state.items())
    assert all(torch.equal(held_out.state[name], value) for name, value in first.state.items())


@configured
def test_chance_comes_from_the_generator(method: Method, config: MethodConfig) -> None:
    stats = observed(method, config, full_batch(), [range(4)]) if method.requirements(config).global_batch else {}
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()

    method.loss(config, full_batch(), LossContext(stats=stats, generator=generator))
    twice = [train_step(method, config, full_batch(), seed=7).loss for _ in range(2)]

    assert torch.equal(generator.get_state(), before) != method.requirements(config).stochastic
    assert torch.equal(*twice)


# Requirements


@configured
def test_nothing_undeclared_is_read(method: Method, config: MethodConfig) -> None:
    flags = set(requirement_names(method.requirements(config)))
    full, bare = full_batch(), carried(full_batch(), flags)

    expected, actual = train_step(method, config, full), train_step(method, config, bare)
    expected.loss.backward()
    actual.loss.backward()

    assert torch.equal(actual.loss, expected.loss)
    assert_same_gradients(bare, full)


@configured
def test_everything_declared_is_read(method: Method, config: MethodConfig) -> None:
    flags = set(requirement_names(method.requirements(config)))
    fields_of = {flag: [name for name, needs in FIELDS.items() if flag in needs] for flag in flags}

    for flag, names in fields_of.items():
        if names:
            with pytest.raises(InternalError, match="|".join(rf"\b{name}\b" for name in names)):
                train_step(method, config, carried(full_batch(), flags - {flag}))


@configured
def test_figures_of_the_global_batch_are_needed_and_as_declared(method: Method, config: MethodConfig) -> None:
    requirements = method.requirements(config)
    if not requirements.global_batch:
        assert not requirements.policy_figures
        return
    assert method.observe is not None
    batch = full_batch()
    unknown = replace(batch, **{name: torch.full_like(getattr(batch, name), torch.nan) for name in OF_THE_POLICY})

    with torch.no_grad():
        figures = method.observe(config, unknown)
    with pytest.raises(KeyError):
        method.loss(config, batch, LossContext(generator=torch.Generator()))

    assert all(figure.shape == (4,) for figure in figures.values())
    assert any(bool(figure.isnan().any()) for figure in figures.values()) == requirements.policy_figures


# Parameters


@methods
def test_a_method_says_what_it_is(method: Method) -> None:
    assert method.summary.endswith(".")
    assert method.formula
    assert "arXiv:" in method.source or method.evidence == "own"
    assert not method.name.startswith("x_") or method.evidence == "rebuilt"


def bounds(field: FieldInfo) -> list[Any]:
    """Of a number, also where it is one of several forms a parameter may take."""
    forms = [form for member in get_args(field.annotation) for form in getattr(member, "__metadata__", ())]
    return [*field.metadata, *(bound for form in forms if isinstance(form, FieldInfo) for bound in form.metadata)]


@methods
def test_every_number_has_a_range_and_out_of_it_is_refused_by_name(method: Method) -> None:
    assert parse_params(method.name, {}) == method.config()
    for name, field in method.config.model_fields.items():
        assert field.description, name
        outside: list[Any] = [[]]
        for bound in bounds(field):
            if isinstance(bound, Gt | Ge):
                low = bound.gt if isinstance(bound, Gt) else bound.ge
                outside.append(low if isinstance(bound, Gt) else low - 1)  # type: ignore[operator]
            if isinstance(bound, Lt | Le):
                high = bound.lt if isinstance(bound, Lt) else bound.le
                outside.append(high if isinstance(bound, Lt) else high + 1)  # type: ignore[operator]
        number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
        assert len(outside) > 1 or not number, f"{name} has no range"
        for value in outside:
            with pytest.raises(InvalidArgumentError) as caught:
                parse_params(method.name, {name: value}, path="method")
            assert [violation.field for violation in caught.value.violations] == [f"method.params.{name}"]


@methods
def test_an_unknown_parameter_is_refused_with_the_names_there_are(method: Method) -> None:
    with pytest.raises(InvalidArgumentError, match=", ".join(method.config.model_fields)) as caught:
        parse_params(method.name, {"temprature": 1}, path="method")
    assert [violation.field for violation in caught.value.violations] == ["method.params.temprature"]
