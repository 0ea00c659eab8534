"""What is masked in the lines of a run, and what is not."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madpo.worker.credentials import without_credentials

HF = "hf_" + "aB3" * 8
LETTERS = string.ascii_letters + string.digits


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("redis://user:opensesame@host:6379/0 is away", "redis://***@host:6379/0 is away"),
        ("redis://:open/se/same@host:6379/0 is away", "redis://***@host:6379/0 is away"),
        ("https://somebody@host/path", "https://***@host/path"),
        (f"token={HF}", "token=***"),
        (f"HF_TOKEN: '{HF}'", "HF_TOKEN: '***'"),
        (f"could not log in with {HF}.", "could not log in with ***."),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("'authorization': 'Bearer abc.def'", "'authorization': 'Bearer ***'"),
        ("aws_secret_access_key=wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key=***"),
        ("X-Amz-Security-Token=FwoGZXIvYXdzE&x=1", "X-Amz-Security-Token=***&x=1"),
        ("key AKIAIOSFODNN7EXAMPLE was refused", "key *** was refused"),
        ("cookie eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc", "cookie ***"),
        ("the secret is madpo_" + "x1" * 20, "the secret is ***"),
    ],
)
def test_credentials_are_masked(line, shown):
    assert without_credentials(line) == shown


@pytest.mark.parametrize(
    "line",
    [
        "pad_token: <pad>, eos_token=<|endoftext|>, bos_token=<|begin_of_text|>",
        "tokens=512, max_tokens: 1024, token: 128001",
        "loss 0.6931 at step 10; grad_norm=1.25e-03",
        "http://127.0.0.1:9000/bucket/models/x@y",
        "TypeError: forward() got an unexpected keyword argument 'token_type_ids'",
        "job-5d1c8f6e7a2b4c3d9e0f1a2b3c4d5e6f of model-0123456789abcdef0123456789abcdef",
        "Some weights of hf_model were not initialized: ['score.weight']",
        "the key is absent, the password was not given",
    ],
)
def test_ordinary_lines_stay(line):
    assert without_credentials(line) == line


@given(user=st.text(LETTERS, max_size=8), password=st.text(LETTERS + "/+=!#", min_size=1, max_size=20))
def test_no_part_of_a_password_in_a_url_is_left(user, password):
    assert without_credentials(f"to s3://{user}:x{password}@host/bucket now") == "to s3://***@host/bucket now"


@given(before=st.text(" (\"'=:", max_size=3), secret=st.text(LETTERS, min_size=20, max_size=40))
def test_a_token_of_the_hub_is_masked_wherever_it_stands(before, secret):
    assert f"hf_{secret}" not in without_credentials(f"a{before} hf_{secret} b")
