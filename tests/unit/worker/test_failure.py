"""How a process says what ended it."""

import signal
import subprocess
from pathlib import Path

import pytest

from madpo.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    OverloadedError,
    StaleAttemptError,
    UnavailableError,
)
from madpo.worker import crash
from madpo.worker.failure import Failure, first_failure, leave_failure, one_line, telling
from madpo.worker.program import command
from madpo.worker.workspace import Run


def raised(tmp_path: Path, error: Exception) -> Failure:
    with pytest.raises(type(error)), telling(tmp_path):
        raise error
    failure = first_failure(tmp_path)
    assert failure is not None
    return failure


def test_a_failure_names_type_message_and_the_innermost_place_of_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), telling(tmp_path):
        Run.open(tmp_path)

    failure = first_failure(tmp_path)

    assert failure is not None
    said = f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/job.json'"
    assert failure.line == f"{said} (in madpo.worker.workspace:open)"


def test_our_own_errors_stand_for_themselves(tmp_path: Path) -> None:
    assert raised(tmp_path, InvalidArgumentError("tau must be positive")).line == "tau must be positive"


def test_a_group_says_its_first_error_and_a_message_is_one_line(tmp_path: Path) -> None:
    group = ExceptionGroup("several", [ExceptionGroup("more", [ValueError("a\n  b")]), TypeError("c")])

    assert raised(tmp_path, group).line == "ValueError: a b"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "micro_batch_tokens"),
        (MemoryError(), "micro_batch_tokens"),
        (RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)"), "shm_size"),
        (OSError(28, "No space left on device"), "make room on the disk"),
        (PermissionError(13, "Permission denied", "/workspace"), "the user that the worker runs as"),
        (RuntimeError("Error(s) in loading: size mismatch for lm_head.weight"), "config.json"),
        (IndexError("index out of range in self"), "token id"),
        (
            RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but"),
            "training.deterministic",
        ),
        (AssertionError("Padding_idx must be within num_embeddings"), "pad_token_id"),
        (ModuleNotFoundError("No module named 'sentencepiece'"), "install it where the worker runs"),
    ],
)
def test_what_to_do_is_said_where_it_is_known(tmp_path: Path, error: Exception, advice: str) -> None:
    assert advice in raised(tmp_path, error).line


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("redis://user:pa:ss@host:6379/0 is wrong", "redis://***@host:6379/0 is wrong"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("password=opensesame, user=me", "password=***, user=me"),
        ("secret_key: opensesame", "secret_key: ***"),
        ("aws_secret_access_key=opensesame", "aws_secret_access_key=***"),
        ("MADPO_REDIS_PASSWORD=opensesame", "MADPO_REDIS_PASSWORD=***"),
        ("{'password': 'opensesame'}", "{'password': '***'}"),
        ("GET https://h/b?X-Amz-Signature=abc&n=1", "GET https://h/b?X-Amz-Signature=***&n=1"),
        ("tokenizer.pad_token = tokenizer.eos_token", "tokenizer.pad_token = tokenizer.eos_token"),
    ],
)
def test_a_message_holds_no_credentials(said: str, kept: str) -> None:
    assert one_line(said) == kept


def test_a_long_message_is_cut() -> None:
    assert len(one_line("x" * 10_000)) == 500


@pytest.mark.parametrize(
    ("error", "is_deterministic"),
    [
        (ValueError("step 3"), True),
        (KeyError("chosen"), True),
        (ZeroDivisionError("float division by zero"), True),
        (RuntimeError("size mismatch for x"), True),
        (ImportError("no tiktoken"), True),
        (RuntimeError("CUDA out of memory"), False),
        (RuntimeError("NCCL error in: x"), False),
        (RuntimeError("[pair.cc] Connection closed by peer"), False),
        (MemoryError(), False),
        (OSError("disk"), False),
        (TimeoutError("late"), False),
        (UnavailableError("nobody answers"), False),
    ],
)
def test_what_depends_on_code_and_data_alone_has_a_fingerprint(
    tmp_path: Path, error: Exception, is_deterministic: bool
) -> None:
    assert bool(raised(tmp_path, error).fingerprint) is is_deterministic


def test_a_fingerprint_is_that_of_type_place_and_message_without_its_numbers() -> None:
    same = [Failure(f"row {row} at 0x{row}", "ValueError", "madpo.a:b", is_deterministic=True) for row in (3, 17)]
    others = [
        Failure("row 3 at 0x3", "ValueError", "madpo.a:c", is_deterministic=True),
        Failure("row 3 at 0x3", "TypeError", "madpo.a:b", is_deterministic=True),
        Failure("line 3 at 0x3", "ValueError", "madpo.a:b", is_deterministic=True),
    ]

    assert len({failure.fingerprint for failure in same}) == 1
    assert len({failure.fingerprint for failure in [*same, *others]}) == 4


def test_the_first_process_that_failed_counts_and_never_one_that_lost_its_peer(tmp_path: Path) -> None:
    leave_failure(tmp_path, 1, Failure("Connection closed by peer [::1]:1", "RuntimeError", time=1.0))
    leave_failure(tmp_path, 2, Failure("later", "ValueError", time=3.0))
    leave_failure(tmp_path, 3, Failure("first", "ValueError", time=2.0))
    leave_failure(tmp_path, 3, Failure("rank 2 exited with code 1", time=2.5))

    failure = first_failure(tmp_path)

    assert failure is not None
    assert failure.message == "first"


def test_a_run_that_left_nothing_is_described_by_its_exit_code() -> None:
    assert crash.describe(None, 3, memory_ran_out=False).line == "the run exited with code 3 before it had finished"
    assert crash.describe(None, -11, memory_ran_out=True).line == "the run was killed by SIGSEGV"


def test_a_killed_run_says_whether_the_kernel_ran_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, limit = tmp_path / "memory.events", tmp_path / "memory.max"
    counts.write_text("low 0\noom 2\noom_kill 2\noom_group_kill 0\n")
    limit.write_text("4294967296\n")
    monkeypatch.setattr(crash, "_COUNTS", (tmp_path / "none", counts))
    monkeypatch.setattr(crash, "_LIMITS", (tmp_path / "none", limit))

    of_rank = crash.killed("rank 1", 9)

    of_memory = crash.describe(of_rank, 1, memory_ran_out=True)
    assert of_memory.line.startswith(
        "rank 1 was killed by SIGKILL: out of host memory, of which the container has 4.0 GiB: give the worker more"
    )
    by_somebody = crash.describe(of_rank, 1, memory_ran_out=False)
    assert by_somebody.line == "rank 1 was killed by SIGKILL from outside: memory had not run out"
    unknown = crash.describe(of_rank, 1, memory_ran_out=None)
    assert unknown.line == "rank 1 was killed by SIGKILL (out of memory?)"
    assert [each.from_outside for each in (of_memory, by_somebody, unknown)] == [False, True, False]


def test_only_a_kill_of_the_last_minute_is_taken_for_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, counts = 0.0, tmp_path / "memory.events"
    counts.write_text("oom_kill 2\n")
    monkeypatch.setattr(crash, "_COUNTS", (tmp_path / "none", counts))
    kills = crash.MemoryKills(clock=lambda: now)
    assert kills.is_recent is False
    counts.write_text("oom_kill 3\n")
    kills.look()
    now = 60.0
    assert kills.is_recent is True
    now = 61.0
    assert kills.is_recent is False
    monkeypatch.setattr(crash, "_COUNTS", (tmp_path / "none",))
    assert crash.MemoryKills().is_recent is None


@pytest.mark.parametrize(
    ("failure", "from_outside"),
    [
        (Failure.of(UnavailableError("no store")), True),
        (Failure.of(OverloadedError("the store is full")), True),
        (Failure.of(DeadlineExceededError("too late")), True),
        (Failure.of(StaleAttemptError("attempt 1 is over")), True),
        (Failure.of(InternalError("a defect")), False),
        (Failure.of(MemoryError("no room")), False),
        (crash.killed("rank 0", signal.SIGTERM), True),
        (crash.killed("rank 0", signal.SIGSEGV), False),
    ],
)
def test_what_comes_from_outside_is_told_apart(failure: Failure, from_outside: bool) -> None:
    assert failure.from_outside is from_outside


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("main = lambda workspace: [][0]", "IndexError: list index out of range"),
    ],
)
def test_a_program_leaves_why_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, line: str) -> None:
    (tmp_path / "failing_program.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    done = subprocess.run(command("failing_program", tmp_path), capture_output=True, text=True, timeout=60, check=False)

    failure = first_failure(tmp_path)
    assert failure is not None
    assert (done.returncode, failure.line.startswith(line)) == (1, True)
    assert line in done.stderr


def test_a_program_that_ends_well_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good_program.py").write_text("main = lambda workspace: (workspace / 'done').touch()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    done = subprocess.run(command("good_program", tmp_path), capture_output=True, timeout=60, check=False)

    assert (done.returncode, (tmp_path / "done").exists(), first_failure(tmp_path)) == (0, True, None)
