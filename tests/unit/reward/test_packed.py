"""Packed rows of the scorer: their numbers with an emulated kernel, their places on a device without numbers."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from madpo.models.packed import attention, varlen
from madpo.models.packed.attention import use_packed_attention
from madpo.models.scores import reward_scores
from madpo_reward import packed as packed_module
from madpo_reward import scorer as scorer_module
from madpo_reward.batcher import one_batch
from madpo_reward.encoding import Tokens
from madpo_reward.layouts import PaddedRows
from madpo_reward.packed import PackedRows, packed_refusal
from madpo_reward.scorer import ScorerConfig, load_scorer
from tests.model_directories import save_directory
from tests.unit.models.packed.test_varlen import Kernel
from tests.unit.reward.test_layouts import CONFIGS, VOCABULARY, reward_model

CAUSAL = [name for name in CONFIGS if name != "distilbert"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(varlen, "_kernel", lambda: kernel)
    monkeypatch.setattr(attention, "varlen_refusal", lambda *_: "")
    return kernel


def make_texts(seed: int = 0) -> list[Tokens]:
    """Prompts with several responses, beyond the window of those that have one; two texts without a prompt."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())

    first, second, third = ids(30), ids(5), ids(1)
    texts = [Tokens(first, ids(9)), Tokens(second, ids(3)), Tokens(first, ids(40)), Tokens((), ids(6))]
    texts += [Tokens(second, ids(1)), Tokens((), ids(1)), Tokens(third, ids(12)), Tokens(first, ids(2))]
    return [*texts, Tokens(first, texts[0].response)]


def scores(layout: PackedRows, texts: Sequence[Tokens]) -> list[float]:
    found = [0.0] * len(texts)
    units = layout.plan(texts)
    while units:
        batch = one_batch(units)
        units = units[len(batch) :]
        for unit, of_unit in zip(batch, layout.prepare(batch)(), strict=True):
            for place, score in zip(unit.places, of_unit, strict=True):
                found[place] = score
    return found


@torch.inference_mode()
def plain_scores(model: Any, texts: Sequence[Tokens]) -> list[float]:
    rows = [torch.tensor([text.ids]) for text in texts]
    return [float(reward_scores(model, row, torch.ones_like(row))) for row in rows]


@pytest.mark.parametrize("name", CAUSAL)
def test_scores_are_those_of_a_plain_forward_pass_in_any_company(name: str, kernel: Kernel) -> None:
    model, texts = reward_model(CONFIGS[name]()).double(), make_texts()
    expected = plain_scores(model, texts)
    use_packed_attention(model)
    layout = PackedRows(model, max_tokens=200)

    assert scores(layout, texts) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert scores(layout, texts[::-1])[::-1] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert [scores(layout, [text])[0] for text in texts] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert kernel.calls


def test_a_prompt_goes_through_the_model_once_for_all_its_responses(kernel: Kernel) -> None:
    model = reward_model(CONFIGS["llama"]())
    use_packed_attention(model)
    layout, texts = PackedRows(model, max_tokens=200), make_texts()
    lengths: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: lengths.append(output.shape[1]))

    scores(layout, texts)

    responses = sum(len(text.response) for text in texts)
    assert lengths == [sum(map(len, {text.prompt for text in texts})) + responses]
    assert lengths == [sum(unit.tokens for unit in layout.plan(texts))]


def test_many_responses_of_one_prompt_are_several_units_of_at_most_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "_POSITIONS", 64)
    texts = [Tokens((1,) * 20, (place,) * 15) for place in range(3, 8)] + [Tokens((1,) * 20, (9,) * 70)]

    units = PackedRows(reward_model(CONFIGS["llama"]()), max_tokens=200).plan(texts)

    assert [unit.places for unit in units] == [(0, 1), (2, 3), (4,), (5,)]
    assert [unit.positions for unit in units] == [50, 50, 35, 90]


def test_after_a_lack_of_memory_half_as_much_is_taken_at_a_time_down_to_a_floor() -> None:
    layout = PackedRows(reward_model(CONFIGS["llama"]()), max_tokens=200)
    before = layout.plan(make_texts())[0].shape.positions

    taken = [layout.plan(make_texts())[0].shape.positions for _ in range(20) if layout.shrink()]

    assert taken == [before >> power for power in range(1, len(taken) + 1)]
    assert taken[-1] == packed_module._LEAST_POSITIONS


META = torch.device("meta")


class Placement:
    """Stands in for the kernel on a device without numbers: takes what it takes, gives what it gives."""

    def __init__(self) -> None:
        self.__signature__ = Kernel().__signature__
        self.calls = 0

    def __call__(self, query: Any, key: Any, value: Any, *others: Any, **_: Any) -> Any:
        self.calls += 1
        assert {tensor.device for tensor in (query, key, value, *others[:2])} == {META}
        assert {tensor.dtype for tensor in (query, key, value)} == {torch.bfloat16}
        return torch.empty_like(query)


class OneDevice(TorchDispatchMode):
    """Refuses every operation on a tensor that is somewhere else, as a GPU does but for single numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor) and each.dim()]
        elsewhere = [tensor.shape for tensor in tensors if tensor.device != META]
        assert not elsewhere, f"{func} is given tensors of the host: {elsewhere}"
        if func in (torch.ops.aten.is_nonzero.default, torch.ops.aten.item.default):
            return True  # transformers looks whether positions begin again, for a mask that is not made
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CAUSAL)
def test_all_of_a_row_is_on_the_models_device_before_it_is_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Placement()
    monkeypatch.setattr(varlen, "_kernel", lambda: kernel)
    monkeypatch.setattr(attention, "varlen_refusal", lambda *_: "")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # there is none without numbers
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model = reward_model(CONFIGS[name]()).to(META, torch.bfloat16)
    use_packed_attention(model)
    layout = PackedRows(model, max_tokens=200)
    varlen.varlen_index.cache_clear()

    row = layout.row(layout.plan(make_texts()))
    with OneDevice():
        found = layout.scores(row)

    indexed = varlen.varlen_index.cache_info()
    assert (found.device, found.shape, found.dtype) == (META, (9,), torch.float32)
    assert kernel.calls == model.config.num_hidden_layers
    assert (indexed.misses, indexed.hits) == (1, kernel.calls)  # what attention needs to know was copied before


@pytest.fixture
def directory(tmp_path: Path, make_toy_tokenizer: Callable[..., Any]) -> Path:
    return save_directory(reward_model(CONFIGS["llama"]()), make_toy_tokenizer(), tmp_path / "model")


def on_cuda(monkeypatch: pytest.MonkeyPatch, refusal: str = "") -> None:
    """Have the scorer choose as it does where the model is on a GPU whose kernel takes it."""
    monkeypatch.setattr(scorer_module, "_is_on_gpu", lambda _: True)
    monkeypatch.setattr(packed_module, "varlen_refusal", lambda *_: refusal)


@pytest.mark.parametrize(
    ("refusal", "batch_tokens", "expected"),
    [
        ("", None, PackedRows),
        ("the kernel is for half precision, not float32", None, PaddedRows),
        ("", 512, PaddedRows),
    ],
)
def test_packed_rows_are_for_gpus_whose_kernel_takes_the_model_unless_a_shape_is_asked_for(
    refusal: str,
    batch_tokens: int | None,
    expected: type,
    directory: Path,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cuda(monkeypatch, refusal)

    scorer = load_scorer("m", directory, base_directory=None, config=ScorerConfig(batch_tokens=batch_tokens))

    assert type(scorer.layout) is expected
    assert scorer.layout.keeps_bits is (expected is PaddedRows)
    scorer.close()


def test_each_layout_has_a_revision_of_its_own(
    directory: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cuda(monkeypatch)
    loaded = [
        load_scorer("m", directory, base_directory=None, config=ScorerConfig(batch_tokens=tokens))
        for tokens in (None, 512, 0)
    ]

    assert len({scorer.revision for scorer in loaded}) == 3
    for scorer in loaded:
        scorer.close()


@pytest.mark.parametrize(("noise", "serves"), [(1e-6, PackedRows), (1e-2, PaddedRows)])
def test_scores_may_differ_by_company_within_a_tolerance_and_no_more(
    noise: float, serves: type, directory: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cuda(monkeypatch)
    compute = PackedRows.scores
    calls = iter(range(1, 1000))
    monkeypatch.setattr(
        PackedRows, "scores", lambda self, row: compute(self, row) * (1 + noise * (next(calls) % 2)) + noise
    )

    scorer = load_scorer("m", directory, base_directory=None, config=ScorerConfig())

    assert type(scorer.layout) is serves
    scorer.close()


def test_a_model_whose_kernel_fails_is_scored_in_padded_rows(
    directory: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cuda(monkeypatch)
    monkeypatch.setattr(
        Kernel, "__call__", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("CUDA error: no kernel image"))
    )

    scorer = load_scorer("m", directory, base_directory=None, config=ScorerConfig())

    assert type(scorer.layout) is PaddedRows
    scorer.close()


def test_a_model_that_packed_rows_are_not_for_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "varlen_refusal", lambda *_: "")

    assert "does not read its score off the last token" in packed_refusal(reward_model(CONFIGS["distilbert"]()))
    assert packed_refusal(reward_model(CONFIGS["llama"]())) == ""
