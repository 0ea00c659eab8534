"""What is run, in order of importance. A job is one training (or one stack of bandits) and gives one record."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.methods.toy import RewardForm, Tier

TIERS: tuple[Tier, ...] = ("high", "medium", "low")


@dataclass(frozen=True, slots=True)
class ToyJob:
    """Train one policy on the toy reviews and measure it."""

    tier: Tier
    form: RewardForm
    seed: int
    reward_model: str
    arm: str
    beta: float
    learning_rate: float
    epochs: int


@dataclass(frozen=True, slots=True)
class LoopJob:
    """Train one policy on the toy reviews in rounds, or by a control of that, and measure it."""

    tier: Tier
    form: RewardForm
    seed: int
    reward_model: str
    arm: str
    beta: float
    learning_rate: float
    rounds: int


@dataclass(frozen=True, slots=True)
class RewardModelJob:
    """Describe one reward model of a toy world."""

    tier: Tier
    form: RewardForm
    seed: int
    reward_model: str


@dataclass(frozen=True, slots=True)
class BanditJob:
    """Train arms at all their betas in all bandit worlds of a tier: all arms, or those that read margins."""

    tier: Tier
    form: RewardForm
    reward_model: str
    first_seed: int
    worlds: int
    learning_rate: float
    steps: int


Job = ToyJob | LoopJob | RewardModelJob | BanditJob

SEEDS = range(101, 109)
"""None of them was looked at before betas, learning rates and analysis were fixed."""
RATE, EPOCHS = 5e-4, 4
SECOND_RATE = 2.5e-4

MAIN_ARMS = (
    *("dpo", "dpo_half_beta", "ipo", "beta_dpo", "simpo", "alpha_dpo", "adpo", "madpo", "rm_soft"),
    *("posterior_0", "posterior_0.25", "posterior_0.5", "beta_dpo_authors"),
)
MAIN_BETA = 0.2

FRONTIER_BETAS = {
    "dpo": (0.05, 0.1, 0.2, 0.4),
    "madpo": (0.1, 0.2, 0.4, 0.8),
    "rm_soft": (0.1, 0.2, 0.4, 0.8),
    "posterior_0.25": (0.2, 0.4, 0.8, 1.6),
    "label_mix_0.25": (0.1, 0.2, 0.4, 0.8),
    "ipo": (0.025, 0.05, 0.1),
}
"""MADPO at beta moves about as far as DPO at half of it."""
CORE_ARMS = ("dpo", "madpo", "rm_soft", "posterior_0.25")

REWARD_MODELS = ("llama-256", "llama-1024", "llama-4096")
"""Beside `words`, the one of the main grid and the frontier."""
MARGIN_ARMS = ("madpo", "rm_soft", "posterior_0.25")
UNBOUNDED_BETAS = {
    "dpo": (0.1, 0.2, 0.4),
    "madpo": (0.2, 0.4, 0.8),
    "madpo_tau2": (0.1, 0.2, 0.4),
    "rm_soft": (0.1, 0.2, 0.4),
    "posterior_0.25": (0.2, 0.4, 0.8),
}

LOOP_SEEDS = range(201, 217)
"""Worlds of iterated training; nothing was measured in them before its measures were fixed."""
LOOP_BETAS = (0.15, 0.25, 0.4)
RLOO_BETAS = (0.2, 0.28, 0.4)
"""At 0.4 it stands where the others stand, at 0.2 farther away."""
ROUNDS = 4
POOR_REWARD_MODEL = "llama-1024"

_BANDIT_BETAS = (0.06, 0.12, 0.25, 0.5, 1.0)
BANDIT_BETAS = {
    **dict.fromkeys(("dpo", "adpo", "madpo", "madpo_c4", "madpo_tau2", "rm_soft"), _BANDIT_BETAS),
    **dict.fromkeys(("posterior_0", "posterior_0.25", "posterior_0.5", "label_mix_0.25"), _BANDIT_BETAS),
    "beta_dpo": (0.12, 0.25, 0.5),
    "ipo": (0.01, 0.02, 0.04, 0.08, 0.15),
    "simpo": (0.1,),
    "alpha_dpo": (0.1,),
}
BANDIT_MARGIN_ARMS = ("madpo", "rm_soft", "posterior_0.25", "label_mix_0.25")
BANDIT_OWN = "mlp-2048"
"""The reward model on the policy's own pairs."""
BANDIT_REWARD_MODELS = ("mlp-256", "mlp-1024", "mlp-4096", "mlp-16384", "truth")
BANDIT_WORLDS, BANDIT_RATE, BANDIT_STEPS = 20, 1e-2, 256


def jobs(part: str) -> Iterator[Job]:
    """The jobs of a part."""
    yield from PARTS[part]()


def _bandit() -> Iterator[Job]:
    for tier in TIERS:
        yield BanditJob(tier, "bounded", BANDIT_OWN, 0, BANDIT_WORLDS, BANDIT_RATE, BANDIT_STEPS)
    yield BanditJob("high", "unbounded", BANDIT_OWN, 0, BANDIT_WORLDS, BANDIT_RATE, BANDIT_STEPS)


def _bandit_reward_models() -> Iterator[Job]:
    for name in BANDIT_REWARD_MODELS:
        yield BanditJob("high", "bounded", name, 0, BANDIT_WORLDS, BANDIT_RATE, BANDIT_STEPS)


def _main(tier: Tier, learning_rate: float) -> Iterator[Job]:
    for seed in SEEDS:
        yield RewardModelJob(tier, "bounded", seed, "words")
        for arm in MAIN_ARMS:
            yield _toy(tier, "bounded", seed, "words", arm, MAIN_BETA, learning_rate)


def _frontier(tier: Tier, arms: Iterable[str], *, learning_rate: float = RATE) -> Iterator[Job]:
    for seed in SEEDS:
        yield RewardModelJob(tier, "bounded", seed, "words")
        betas = {arm: FRONTIER_BETAS[arm] for arm in arms}
        yield from _sweep(tier, "bounded", seed, "words", betas, learning_rate=learning_rate)


def _reward_models() -> Iterator[Job]:
    for seed in SEEDS:
        for name in REWARD_MODELS:
            yield RewardModelJob("high", "bounded", seed, name)
            yield from _sweep("high", "bounded", seed, name, {arm: FRONTIER_BETAS[arm] for arm in MARGIN_ARMS})


def _unbounded() -> Iterator[Job]:
    for seed in SEEDS:
        yield RewardModelJob("high", "unbounded", seed, "words")
        yield from _sweep("high", "unbounded", seed, "words", UNBOUNDED_BETAS)


def _loop(tier: Tier, reward_model: str, arms: Sequence[str]) -> Iterator[Job]:
    """World by world, so that what is there whenever it is stopped is paired."""
    for seed in LOOP_SEEDS:
        yield RewardModelJob(tier, "bounded", seed, reward_model)
        for arm in arms:
            for beta in RLOO_BETAS if arm == "rloo" else LOOP_BETAS:
                yield LoopJob(tier, "bounded", seed, reward_model, arm, beta, RATE, ROUNDS)


def _sweep(
    tier: Tier,
    form: RewardForm,
    seed: int,
    reward_model: str,
    betas: Mapping[str, Sequence[float]],
    *,
    learning_rate: float = RATE,
) -> Iterator[Job]:
    for arm, values in betas.items():
        for beta in values:
            yield _toy(tier, form, seed, reward_model, arm, beta, learning_rate)


def _toy(
    tier: Tier, form: RewardForm, seed: int, reward_model: str, arm: str, beta: float, learning_rate: float
) -> ToyJob:
    if arm == "dpo_half_beta":  # the same run as one of the sweep
        arm, beta = "dpo", beta / 2
    return ToyJob(tier, form, seed, reward_model, arm, beta, learning_rate, EPOCHS)


_OTHERS = tuple(arm for arm in FRONTIER_BETAS if arm not in CORE_ARMS)

PARTS: Mapping[str, Callable[[], Iterator[Job]]] = {
    "bandit": _bandit,
    "bandit-reward-models": _bandit_reward_models,
    "frontier-high": lambda: _frontier("high", CORE_ARMS),
    "main-high": lambda: _main("high", RATE),
    "reward-models": _reward_models,
    "unbounded": _unbounded,
    "main-low": lambda: _main("low", RATE),
    "main-medium": lambda: _main("medium", RATE),
    "frontier-high-others": lambda: _frontier("high", _OTHERS),
    "frontier-low": lambda: _frontier("low", FRONTIER_BETAS),
    "frontier-medium": lambda: _frontier("medium", FRONTIER_BETAS),
    "frontier-high-second-rate": lambda: _frontier("high", CORE_ARMS, learning_rate=SECOND_RATE),
    "second-rate-high": lambda: _main("high", SECOND_RATE),
    "second-rate-medium": lambda: _main("medium", SECOND_RATE),
    "second-rate-low": lambda: _main("low", SECOND_RATE),
    "loop-high": lambda: _loop("high", "words", ("rm_soft", "iterated")),
    "loop-high-rloo": lambda: _loop("high", "words", ("rloo",)),
    "loop-high-poor": lambda: _loop("high", POOR_REWARD_MODEL, ("rm_soft", "iterated")),
    "loop-high-fresh": lambda: _loop("high", "words", ("fresh",)),
    "loop-low": lambda: _loop("low", "words", ("rm_soft", "iterated")),
    "loop-medium": lambda: _loop("medium", "words", ("rm_soft", "iterated")),
    "loop-high-mixed": lambda: _loop("high", "words", ("mixed",)),
    "loop-high-relabel": lambda: _loop("high", "words", ("relabel_unsure", "relabel_random")),
}
"""In order of importance, those of iterated training behind the others."""
