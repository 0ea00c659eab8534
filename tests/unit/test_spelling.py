"""What somebody may have meant."""

import pytest

from madpo.spelling import did_you_mean

NAMES = (
    "model",
    "training.seed",
    "training.optimizer.weight_decay",
    "training.optimizer.learning_rate",
    "sampling.seed",
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("training.optimizer.weight_decai", "; did you mean training.optimizer.weight_decay?"),
        ("traning.seed", "; did you mean training.seed?"),
        ("weight_decay", "; did you mean training.optimizer.weight_decay?"),
        ("learningrate", "; did you mean training.optimizer.learning_rate?"),
        ("seed", "; did you mean training.seed or sampling.seed?"),
        ("Training.Seed", "; did you mean training.seed?"),
        ("temperature", ""),
        ("", ""),
    ],
)
def test_the_nearest_known_name_is_offered_or_none(name: str, meant: str) -> None:
    assert did_you_mean(name, NAMES) == meant
