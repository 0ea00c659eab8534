"""Which responses are fit to be compared."""

import pytest

from madpo.pairing.fit import LeftOut, fit_responses, similarity


def fit(texts: list[str], *, cut: tuple[int, ...] = (), **options: object) -> tuple[list[int], LeftOut]:
    left_out = LeftOut()
    finished = [place not in cut for place in range(len(texts))]
    settings: dict[str, object] = {"max_similarity": 0.9, "keep_unfinished": False, **options}
    return fit_responses(texts, finished, left_out=left_out, **settings), left_out  # type: ignore[arg-type]


def test_what_is_left_out_is_counted_by_its_reason() -> None:
    texts = ["a good film", "a good film", "cut off", "a bad film", "A good film!", " "]

    assert fit(texts, cut=(2,)) == ([0, 3, 4], LeftOut(empty=1, unfinished=1, identical=1))
    assert fit(texts, cut=(2,), keep_unfinished=True) == ([0, 2, 3, 4], LeftOut(empty=1, identical=1))
    assert fit(texts, cut=(2,), max_similarity=0.4) == ([0, 3], LeftOut(1, unfinished=1, identical=1, similar=1))


def test_of_responses_much_like_each_other_the_first_stays() -> None:
    long = "one two three four five six seven eight nine ten"
    texts = [long, f"{long} eleven", "something else altogether", long.replace("ten", "end")]

    assert fit(texts, max_similarity=0.7)[0] == [0, 2]
    assert fit(texts, max_similarity=0.8)[0] == [0, 2, 3]
    assert fit(texts, max_similarity=1.0)[0] == [0, 1, 2, 3]
    assert fit([*texts, *texts], max_similarity=0.0)[0] == [0, 2]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c d", "a b c d", 1.0),
        ("a b c d", "A  B c d", 1.0),
        ("a b c d", "a b c e", 1 / 3),
        ("a b", "a b", 1.0),
        ("a b", "b a", 0.0),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("日本語", "日本語", 1.0),
    ],
)
def test_similarity_is_the_share_of_trigrams_in_common(first: str, second: str, expected: float) -> None:
    assert similarity(first, second) == similarity(second, first) == pytest.approx(expected)
