"""Iterated training: rounds of sampling, scoring and training, with the product's own rules of pairing.

A round is one pass over as many pairs as are labelled, the same prompts answered anew. All arms of a world train by
`rm_soft` for the same number of steps in one cosine, from the same supervised policy, which stays the reference: they
differ in their pairs alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from bench.methods.llama import Weights
from bench.methods.policy import BATCH, Training
from bench.methods.reward_models import Score, fit_words, joined, scorer, split, words_score
from bench.methods.sampling import Samples
from bench.methods.toy import (
    PROMPT_TOKENS,
    Pairs,
    RewardForm,
    Size,
    Tier,
    World,
    all_logps,
    draw,
    noise_seed,
    reward,
    texts,
    valence_sum,
    world,
)
from madpo.data.order import Schedule
from madpo.losses.method import Method, MethodConfig
from madpo.pairing.fit import LeftOut, fit_responses
from madpo.pairing.label import labelled_pairs
from madpo.pairing.registry import RULES
from madpo.types import PromptOnly
from madpo_examples.toy_reviews.model import MAX_TOKENS

_LABEL_SAMPLES = 4
_DRAWN_TOGETHER = 256
"""So that keys and values stay in the cache."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Where an arm's pairs come from."""

    sampled_from: Literal["supervised", "current"]
    labelled_share: float = 0.0
    """Of each round's pairs; the rest are sampled."""
    relabel: str = ""
    """The reward model starts from half of the labels. After half of the rounds this rule chooses pairs of the policy
    that get the other half, and it is fitted anew on all."""


LOOPS: Mapping[str, Loop] = {
    "fresh": Loop("supervised"),
    "iterated": Loop("current"),
    "mixed": Loop("current", labelled_share=0.5),
    "relabel_unsure": Loop("current", relabel="least_sure"),
    "relabel_random": Loop("current", relabel="random_pair"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a loop starts from."""

    seed: int
    tier: Tier
    form: RewardForm
    reward_model: str
    cache_directory: Path
    size: Size

    @property
    def world(self) -> World:
        return world(self.seed, self.cache_directory, self.size)

    def pairs(self) -> tuple[Pairs, Pairs, Pairs]:
        """Validation, held-out and training pairs."""
        return split(self.world, self.tier, self.form)

    def scorer(self, name: str = "") -> Score:
        """Its reward model, or another one of its world."""
        return scorer(
            self.seed,
            self.tier,
            self.form,
            name or self.reward_model,
            cache_directory=self.cache_directory,
            size=self.size,
        )


def train(
    setting: Setting, loop: Loop, method: Method, config: MethodConfig, *, learning_rate: float, rounds: int
) -> Weights | None:
    """Train in rounds; None when the loss stops being finite or a round has no usable pair."""
    made, (validation, _, labelled) = setting.world, setting.pairs()
    steps = len(labelled.rows) // BATCH
    training = Training(made, method, config, learning_rate=learning_rate, steps=rounds * steps)
    half = len(labelled.rows) // 2
    score = setting.scorer(f"words-{half}") if loop.relabel else setting.scorer()
    for round_ in range(rounds):
        if loop.relabel and round_ == rounds // 2:
            bought = _label_own(setting, training.weights, labelled[half:], score, rule=loop.relabel)
            score = words_score(fit_words(joined(labelled[:half], bought), validation))
        pairs, margins = _round(setting, loop, training.weights, labelled, score, round_)
        if not len(pairs.rows):
            return None
        order = Schedule.plan(
            rows=len(pairs.rows),
            batch_size=BATCH,
            seed=noise_seed(made.seed, 11, round_),
            epochs=1,
            max_steps=steps,
        )
        for step in range(steps):
            members = torch.tensor(order.batch(step))
            if not training.step(pairs[members], margins[members]):
                return None
    return training.policy()


def _round(
    setting: Setting, loop: Loop, policy: Weights, labelled: Pairs, score: Score, round_: int
) -> tuple[Pairs, Tensor]:
    """The pairs of a round, and their margins by the reward model [N]."""
    given = int(loop.labelled_share * len(labelled.rows))
    # The half of the labelled pairs that a round takes, and the prompts it samples for, change places every round.
    turned = torch.arange(len(labelled.rows)).roll(-given * round_)
    prompts = _prompts(labelled[turned[given:]])
    if loop.sampled_from == "supervised" or round_ == 0:
        drawn = _drawn_supervised(setting, round_, given)
    else:
        drawn = _draw(setting.world, policy, prompts, stream=round_, samples=2)
    sampled, margins = paired_responses(setting.world, prompts, drawn, score, rule="random_pair", stream=round_)
    if not given:
        return sampled, margins
    kept = labelled[turned[:given]]
    rewards = score(kept.rows.flatten(0, 1), kept.lengths.flatten()).view(-1, 2)
    return joined(kept, sampled), torch.cat([(rewards[:, 0] - rewards[:, 1]).float(), margins])


@lru_cache(maxsize=8)
def _drawn_supervised(setting: Setting, round_: int, given: int) -> list[Samples]:
    """Of the supervised policy: the same for every beta."""
    labelled = setting.pairs()[2]
    prompts = _prompts(labelled[torch.arange(len(labelled.rows)).roll(-given * round_)[given:]])
    return _draw(setting.world, setting.world.reference, prompts, stream=round_, samples=2)


def _draw(made: World, policy: Weights, prompts: Tensor, *, stream: int, samples: int) -> list[Samples]:
    """Responses to each prompt with noise that depends on world, stream and place alone."""
    seeds = [noise_seed(made.seed, 12, 8 * stream + index) for index in range(samples)]
    parts = prompts.split(_DRAWN_TOGETHER)
    return [
        _stacked([draw(policy, each, made.shape, seed=seed + (part << 32)) for part, each in enumerate(parts)])
        for seed in seeds
    ]


def _stacked(parts: list[Samples]) -> Samples:
    rows = [pad(each.rows, (0, MAX_TOKENS - each.rows.shape[1])) for each in parts]
    return Samples(
        torch.cat(rows), torch.cat([each.lengths for each in parts]), torch.cat([each.finished for each in parts])
    )


def _prompts(pairs: Pairs) -> Tensor:
    return pairs.rows[:, 0, :PROMPT_TOKENS]


def paired_responses(
    made: World, prompts: Tensor, drawn: list[Samples], score: Score, *, rule: str, stream: int
) -> tuple[Pairs, Tensor]:
    """Pairs of responses that a rule of the product chooses, as a sampling job makes them, and their margins [N].

    Args:
        made: The world.
        prompts: [P, T].
        drawn: Responses to all prompts, one element for each time they were answered.
        score: The reward model; the response it prefers is called chosen.
        rule: Which responses to a prompt are compared, with its default parameters.
        stream: Sets the rule's chance apart.
    """
    chance = Random(noise_seed(made.seed, 13, stream))
    config = RULES[rule].config()
    written = [texts(each.rows[:, PROMPT_TOKENS:], each.lengths - PROMPT_TOKENS) for each in drawn]
    rewards = [score(each.rows, each.lengths).tolist() for each in drawn]
    chosen, margins = [], []
    for place, prompt in enumerate(texts(prompts, torch.full((len(prompts),), PROMPT_TOKENS))):
        whole = [bool(each.finished[place]) for each in drawn]
        responses = [each[place] for each in written]
        fit = fit_responses(responses, whole, max_similarity=1.0, keep_unfinished=False, left_out=LeftOut())
        if len(fit) < 2:
            continue
        drawn_as = {responses[each]: (each, place) for each in fit}
        scores = [rewards[each][place] for each in fit]
        for couple in RULES[rule].choose(config, scores, chance):
            for pair in labelled_pairs(
                PromptOnly(prompt), list(drawn_as), scores, couple, labels="hard", temperature=1.0, chance=chance
            ):
                chosen += [drawn_as[pair.chosen], drawn_as[pair.rejected]]
                margins.append(pair.reward_margin)
    return _pairs(made, drawn, chosen), torch.tensor(margins, dtype=torch.float32)


def _pairs(made: World, drawn: list[Samples], places: list[tuple[int, int]]) -> Pairs:
    """Of samples by their places (which drawing, which prompt): chosen, rejected, chosen, ..."""
    rows = torch.zeros(len(places), MAX_TOKENS, dtype=torch.int64)
    lengths = torch.zeros(len(places), dtype=torch.int64)
    for index, (each, place) in enumerate(places):
        rows[index], lengths[index] = drawn[each].rows[place], drawn[each].lengths[place]
    sums = torch.tensor([valence_sum(text) for text in texts(rows, lengths)], dtype=torch.float64).view(-1, 2)
    logps = all_logps(made.reference, rows, lengths, made.shape) if places else torch.zeros(0)
    return Pairs(rows.view(-1, 2, MAX_TOKENS), lengths.view(-1, 2), logps.view(-1, 2), sums[:, 0] - sums[:, 1])


def _label_own(setting: Setting, policy: Weights, unlabelled: Pairs, score: Score, *, rule: str) -> Pairs:
    """Pairs of the policy's own responses, with Bradley-Terry labels of the true reward as all pairs of the world."""
    made, prompts = setting.world, _prompts(unlabelled)
    drawn = _draw(made, policy, prompts, stream=7, samples=_LABEL_SAMPLES)
    pairs, _ = paired_responses(made, prompts, drawn, score, rule=rule, stream=7)
    sums = torch.tensor(list(map(valence_sum, texts(pairs.rows.flatten(0, 1), pairs.lengths.flatten()))))
    rewards = reward(sums.double(), setting.form).view(-1, 2)
    lead = rewards[:, 0] - rewards[:, 1]
    uniform = torch.rand(
        len(lead), dtype=torch.float64, generator=torch.Generator().manual_seed(noise_seed(made.seed, 15))
    )
    order = torch.where((uniform < lead.sigmoid())[:, None], torch.tensor([0, 1]), torch.tensor([1, 0]))
    places = torch.arange(len(lead))[:, None]
    turned = rewards[places, order]
    return Pairs(
        rows=pairs.rows[places, order],
        lengths=pairs.lengths[places, order],
        reference_logps=pairs.reference_logps[places, order],
        true_margin=turned[:, 0] - turned[:, 1],
    )
