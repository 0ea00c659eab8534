"""The movie reviews: rated snippets, labels, the package index, and the metric."""

import base64
import hashlib
import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from madpo.data.records import parse_row
from madpo.errors import InvalidArgumentError, UnavailableError
from madpo.types import PreferencePair
from madpo_examples.movie_reviews.convert import smollm2_directory
from madpo_examples.movie_reviews.data import (
    LabelledPair,
    Snippet,
    fit_logits_per_point,
    make_pairs,
    read_snippets,
    relabel_by_mean,
    to_rows,
)
from madpo_examples.movie_reviews.fetch import RATED_SNIPPETS, Archive, cache_directory, fetch
from madpo_examples.movie_reviews.vader import vader_metric

TEXTS = "1\t2.0\tA caf\u00e9 comedy, warm   and funny.\r\n2\t-1.5\tDull.\r\n3\t1.0\tDull.\r\n"
RATINGS = "1\t2.0\t0.5\t[3, 2, 1]\r\n2\t-1.5\t0.5\t[-1, -2]\r\n3\t1.0\t0.5\t[1, 1]\r\n"


def archive_of(path: Path, *, texts: str = TEXTS, ratings: str = RATINGS) -> Path:
    """A source archive laid out as the real one."""
    files = {"movieReviewSnippets_GroundTruth.txt": texts, "movieReviewSnippets_anonDataRatings.txt": ratings}
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return path


def snippets_rated(*means: int) -> list[Snippet]:
    return [Snippet(f"snippet {index}", (mean,)) for index, mean in enumerate(means)]


def test_snippets_carry_text_and_every_rating_and_come_once(tmp_path: Path) -> None:
    first, second = read_snippets(archive_of(tmp_path / "archive.zip"))
    assert (first.text, first.ratings, first.mean_rating) == ("A caf\u00e9 comedy, warm   and funny.", (3, 2, 1), 2.0)
    assert second.text == "Dull."


def test_snippets_without_ratings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="different snippets"):
        read_snippets(archive_of(tmp_path / "archive.zip", texts=TEXTS + "4\t0.0\tAlone.\r\n"))


def test_pairs_use_no_snippet_twice_and_keep_the_gap() -> None:
    rng = random.Random(0)
    pairs = make_pairs(snippets_rated(*(rng.randint(-4, 4) for _ in range(400))), 60, rng, min_gap=2.0)
    used = [snippet.text for pair in pairs for snippet in (pair.chosen, pair.rejected)]
    assert len(used) == len(set(used)) == 120
    assert min(pair.rating_gap for pair in pairs) >= 2.0


def test_labels_are_single_ratings_so_they_can_contradict_the_mean() -> None:
    split = [Snippet(f"good {index}", (4, 4, 4, -4)) for index in range(2000)]
    bland = [Snippet(f"bland {index}", (0,)) for index in range(2000)]
    pairs = make_pairs(split + bland, 600, random.Random(0), min_gap=1.0)
    agreeing = sum(pair.chosen.text.startswith("good") for pair in pairs) / len(pairs)
    assert agreeing == pytest.approx(0.75, abs=0.05)
    assert all(relabel_by_mean(pair).chosen.text.startswith("good") for pair in pairs)


def test_too_few_snippets_are_said_so() -> None:
    with pytest.raises(InvalidArgumentError, match="give 0 pairs"):
        make_pairs(snippets_rated(1, 1, 1, 1), 1, random.Random(0), min_gap=0.5)


def test_logits_per_point_puts_the_raters_agreement_on_the_logistic_curve() -> None:
    pair = LabelledPair(Snippet("good", (4, 4, 4, -4)), Snippet("bland", (0,)))
    slope = fit_logits_per_point([pair])
    assert slope * pair.rating_gap == pytest.approx(1.0986122886681098)  # the log-odds of 3 raters in 4


def test_rows_are_chat_pairs_with_a_signed_margin() -> None:
    pair = LabelledPair(Snippet("worse", (0,)), Snippet("better", (2,)))
    (value,) = to_rows([pair], random.Random(0), logits_per_point=1.5)
    parsed = parse_row(value, 1)
    assert isinstance(parsed, PreferencePair)
    assert parsed.reward_margin == -3.0
    assert [message.role for message in parsed.prompt if not isinstance(message, str)] == ["system", "user"]


def wheel(path: Path, *, payload: str) -> Archive:
    """A minimal wheel, and what is known of it."""
    info = "tinything-1.0.dist-info"
    files = {
        "tinything.py": payload,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(text)},{len(text)}\n" for name, text in files.items())
    filename = "tinything-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path / filename, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    sha256 = hashlib.sha256((path / filename).read_bytes()).hexdigest()
    return Archive("tinything==1.0", filename, sha256, is_wheel=True)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index in a directory: pip looks nowhere else."""
    path = tmp_path / "index"
    path.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    return path


def test_an_archive_is_downloaded_once_and_then_taken_from_the_cache(index: Path, tmp_path: Path) -> None:
    archive = wheel(index, payload="x = 1\n")
    path = fetch(archive, tmp_path / "cache")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == archive.sha256
    (index / archive.filename).unlink()
    assert fetch(archive, tmp_path / "cache") == path
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [archive.filename]


def test_a_damaged_copy_in_the_cache_is_replaced(index: Path, tmp_path: Path) -> None:
    archive = wheel(index, payload="x = 1\n")
    path = fetch(archive, tmp_path / "cache")
    path.write_bytes(b"damaged")
    assert hashlib.sha256(fetch(archive, tmp_path / "cache").read_bytes()).hexdigest() == archive.sha256


def test_other_bytes_under_the_same_name_are_refused(index: Path, tmp_path: Path) -> None:
    archive = wheel(index, payload="x = 1\n")
    wheel(index, payload="x = 2\n")
    with pytest.raises(UnavailableError, match="DO NOT MATCH THE HASHES"):
        fetch(archive, tmp_path / "cache")
    assert not (tmp_path / "cache" / archive.filename).exists()


def test_an_index_without_the_package_is_named_as_the_reason(index: Path, tmp_path: Path) -> None:
    archive = Archive("tinything==1.0", "tinything-1.0-py3-none-any.whl", "0" * 64, is_wheel=True)
    with pytest.raises(UnavailableError, match=r"tinything==1\.0 could not be had.*No matching distribution"):
        fetch(archive, tmp_path)


def test_the_cache_follows_the_home_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADPO_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "movie-reviews"
    monkeypatch.delenv("MADPO_HOME")
    assert cache_directory() == Path.home() / ".cache" / "madpo" / "movie-reviews"


def test_vader_tells_praise_from_blame() -> None:
    pytest.importorskip("vaderSentiment")
    praise, neutral, blame = vader_metric(["p"] * 3, ["A wonderful film.", "A film.", "A terrible film."])
    assert praise > neutral == 0.0 > blame


@pytest.mark.real
def test_the_real_archives_give_a_chat_model_and_rated_snippets() -> None:
    for name in ("accelerate", "gguf"):
        pytest.importorskip(name)
    try:
        directory = smollm2_directory()
        ratings = fetch(RATED_SNIPPETS, cache_directory())
    except UnavailableError as error:
        pytest.skip(str(error))
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    snippets = read_snippets(ratings)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
    assert model.num_parameters() > 130_000_000
    assert tokenizer.decode(answer).endswith("The capital of France is Paris.<|im_end|>")
    assert len(snippets) == 10_603
    assert min(len(snippet.ratings) for snippet in snippets) >= 15
