"""The toy reviews: language, oracle, base model, pairs."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from madpo.errors import InvalidArgumentError
from madpo.types import Message
from madpo_examples.toy_reviews.language import (
    PROMPT_WORDS,
    grammatical_metric,
    is_grammatical,
    negative_openings,
    reward_metric,
    split_review,
    true_reward,
    vocabulary,
    write_review,
)
from madpo_examples.toy_reviews.model import MAX_TOKENS, make_base_model, make_tokenizer
from madpo_examples.toy_reviews.preferences import Candidates, candidate_pairs, noiseless_label, noisy_label

REVIEW = "a 1980s drama . the plot is not weak . i loved the very good score ."


class All:
    """Contains everything."""

    def __contains__(self, item: object) -> bool:
        return True


def some_reviews(count: int) -> list[str]:
    rng = random.Random(0)
    return [write_review(rng) for _ in range(count)]


def test_every_written_review_is_grammatical_and_uses_the_vocabulary() -> None:
    reviews = some_reviews(2000)
    assert all(map(is_grammatical, reviews))
    assert {word for review in reviews for word in review.split()} == set(vocabulary())


@pytest.mark.parametrize(
    "text",
    [
        "a 1980s drama . the plot is weak .",  # one clause
        "a 1980s drama ." + " the plot is weak ." * 5,
        REVIEW.removesuffix(" ."),
        REVIEW + " ",
        REVIEW.replace("loved", "good"),
        REVIEW.replace("1980s drama", "drama 1980s"),
        REVIEW.replace("not weak", "very long"),  # neutral words are never modified
        REVIEW.replace("not weak", "not very weak"),
        "",
    ],
)
def test_what_the_language_cannot_write_is_not_grammatical(text: str) -> None:
    assert is_grammatical(REVIEW)
    assert not is_grammatical(text)


@pytest.mark.parametrize(
    ("text", "valence"),
    [
        ("the plot is good .", 1.0),
        ("the plot is awful .", -2.0),
        ("the plot is not weak .", 0.75),
        ("the plot is hardly superb .", -1.0),
        ("my wife hated the truly terrible set .", -2.0 - 3.0),
        (REVIEW, 0.75 + 2.0 + 1.5),
        ("very . good", 1.0),  # a modifier scales only the word right after it
        ("something else entirely", 0.0),
        ("", 0.0),
    ],
)
def test_reward_is_the_squashed_sum_of_valences(text: str, valence: float) -> None:
    expected = 6.0 * (1.0 / (1.0 + math.exp(-valence / 2.0)) - 0.5)
    assert true_reward(text) == pytest.approx(expected, abs=1e-12)


def test_rewards_of_reviews_are_balanced_and_spread() -> None:
    rewards = [true_reward(review) for review in some_reviews(5000)]
    mean = sum(rewards) / len(rewards)
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    assert abs(mean) < 0.1
    assert 1.7 < spread < 2.0
    assert abs(true_reward("superb " * 1000)) <= 3.0


def test_prompt_and_rest_make_up_the_review() -> None:
    prompt, rest = split_review(REVIEW)
    assert prompt == "a 1980s drama . the plot"
    assert f"{prompt} {rest}" == REVIEW


def test_openings_are_six_words_each_comes_once_and_the_excluded_stay_away() -> None:
    first = negative_openings(50, random.Random(1))
    second = negative_openings(200, random.Random(1), exclude=set(first))
    assert len(set(second)) == 200
    assert {len(prompt.split()) for prompt in first} == {PROMPT_WORDS}
    assert not set(first) & set(second)


def test_openings_come_from_negative_reviews() -> None:
    openings = negative_openings(300, random.Random(0))
    hated, loved = (sum(prompt.endswith(f"i {verb}") for prompt in openings) for verb in ("hated", "loved"))
    assert hated > 2 * loved


def test_more_openings_than_the_language_has_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="ask for fewer"):
        negative_openings(3, random.Random(0), exclude=All())


def test_metrics_judge_prompt_and_response_together() -> None:
    prompt, rest = split_review(REVIEW)
    assert reward_metric([prompt, prompt], [rest, "."]) == [true_reward(REVIEW), 0.0]
    assert grammatical_metric([prompt, prompt], [rest, "."]) == [1.0, 0.0]


def test_metrics_refuse_chat_prompts() -> None:
    with pytest.raises(InvalidArgumentError, match="plain-text"):
        reward_metric([(Message("user", "hello"),)], ["."])


def test_the_language_is_importable_without_torch() -> None:
    code = "import sys, madpo_examples.toy_reviews.language; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokenizer_has_one_token_a_word_and_decodes_what_it_encodes() -> None:
    tokenizer = make_tokenizer()
    prompt, rest = split_review(REVIEW)
    prompt_ids = tokenizer(prompt).input_ids
    rest_ids = tokenizer(rest, add_special_tokens=False).input_ids
    assert prompt_ids[0] == tokenizer.bos_token_id
    assert len(prompt_ids) == PROMPT_WORDS + 1
    assert tokenizer.decode(prompt_ids + rest_ids, skip_special_tokens=True) == REVIEW
    assert max(len(review.split()) for review in some_reviews(5000)) + 2 <= MAX_TOKENS


def test_base_model_is_a_loadable_directory_that_depends_on_the_seed(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        make_base_model(tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again", "other"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert first == again
    assert first != other
    assert 200_000 < model.num_parameters() < 300_000
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert tokenizer(REVIEW).input_ids == make_tokenizer()(REVIEW).input_ids


def generations(prompt_index: int, *responses: str, finished: bool = True) -> list[str]:
    return [
        json.dumps(
            {
                "prompt_index": prompt_index,
                "prompt": "a 1980s drama . the plot",
                "sample": sample,
                "response": response,
                "finished": finished,
            }
        )
        for sample, response in enumerate(responses)
    ]


def test_pairs_leave_out_empty_cut_off_ungrammatical_and_equal_responses() -> None:
    whole = ("is good . it has a good set .", "is weak . it has a good set .")
    lines = [
        *generations(0, *whole, whole[0], whole[0]),
        *generations(1, "", whole[0]),
        *generations(2, whole[0], "is", finished=False),
        *generations(3, whole[0], "is good . it has has a set ."),
    ]
    (pair,) = candidate_pairs(lines)
    assert pair.responses == whole
    assert pair.rewards == (3.0 * math.tanh(0.5), 0.0)


def test_noisy_labels_follow_bradley_terry() -> None:
    pair = Candidates("p", ("better", "worse"), (1.2, 0.5))
    rng = random.Random(0)
    wins = sum(noisy_label(pair, rng)["chosen"] == "better" for _ in range(20_000))
    assert wins / 20_000 == pytest.approx(0.668187772168, abs=0.012)


def test_noiseless_label_chooses_the_higher_reward() -> None:
    label = noiseless_label(Candidates("p", ("worse", "better"), (-1.0, 0.5)))
    assert label == {"prompt": "p", "chosen": "better", "rejected": "worse"}
