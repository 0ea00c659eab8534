"""A tokenizing process that ends: by what it was given to do, or by nothing of the kind."""

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from madpo.data.tokenizer_process import Limits, TokenizerProcess
from madpo.errors import InvalidArgumentError, UnavailableError
from tests.hostile import endings


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, make_toy_tokenizer: Callable[..., Any]) -> Path:
    directory = tmp_path_factory.mktemp("models") / "good"
    make_toy_tokenizer().save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


@pytest.fixture
def process(directory: Path) -> Iterator[TokenizerProcess]:
    process = TokenizerProcess(directory)
    yield process
    process.close()


def test_what_goes_beyond_its_limits_is_at_fault(process: TokenizerProcess) -> None:
    with pytest.raises(InvalidArgumentError, match="beyond 1 s of processor time"):
        process.call(endings.spin, cpu_s=1)
    with pytest.raises(InvalidArgumentError, match="beyond 2048 MiB of memory"):
        process.call(endings.hoard, cpu_s=5)
    with pytest.raises(InvalidArgumentError, match="beyond 2048 MiB of memory"):
        process.call(endings.end_by, signal.SIGABRT, cpu_s=5)  # as Rust does that gets no memory
    assert process.call(endings.pid, cpu_s=5)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_ended_from_outside_may_be_asked_again(process: TokenizerProcess, signum: int) -> None:
    with pytest.raises(UnavailableError, match=f"{signal.Signals(signum).name}.*try again"):
        process.call(endings.end_by, signum, cpu_s=5)
    with pytest.raises(UnavailableError, match="code 3, its standard error says why"):
        process.call(endings.exit_with, 3, cpu_s=5)

    assert process.call(endings.pid, cpu_s=5)


def test_a_crash_is_the_fault_of_what_was_asked_where_it_comes_again(process: TokenizerProcess, tmp_path: Path) -> None:
    assert process.call(endings.crash_once, tmp_path / "mark", cpu_s=5) == "answered"
    with pytest.raises(InvalidArgumentError, match=r"crashes on this each time \(SIGSEGV\)"):
        process.call(endings.end_by, signal.SIGSEGV, cpu_s=5)
    assert process.call(endings.pid, cpu_s=5)


def test_a_panic_of_the_library_is_told_and_costs_no_process(process: TokenizerProcess) -> None:
    before = process.call(endings.pid, cpu_s=5)
    with pytest.raises(InvalidArgumentError, match="the tokenizer fails: BaseException: index out of bounds"):
        process.call(endings.panic, cpu_s=5)

    assert process.call(endings.pid, cpu_s=5) == before


def test_nobody_notices_that_an_idle_process_was_killed(process: TokenizerProcess) -> None:
    before = process.call(endings.pid, cpu_s=5)
    os.kill(before, signal.SIGKILL)
    psutil.Process(before).wait(timeout=60)

    assert process.call(endings.pid, cpu_s=5) != before


def test_what_forks_the_processes_may_be_ended_from_outside(process: TokenizerProcess, directory: Path) -> None:
    before = process.call(endings.pid, cpu_s=5)
    forking = psutil.Process(before).parent()
    assert forking is not None
    forking.kill()
    forking.wait(timeout=60)
    other = TokenizerProcess(directory)

    assert process.call(endings.pid, cpu_s=5) == before
    assert other.call(endings.pid, cpu_s=5) != before
    for each in (process, other):
        each.close()


def test_a_process_that_takes_no_time_is_given_up_without_blame(directory: Path) -> None:
    process = TokenizerProcess(directory, limits=Limits(wall_per_cpu=10.0))
    process.call(endings.pid, cpu_s=5)
    process.limits = Limits(wall_per_cpu=0.1)

    with pytest.raises(UnavailableError, match="came to nothing in 0 s"):
        process.call(endings.end_by, signal.SIGSTOP, cpu_s=1)
    process.limits = Limits()
    assert process.call(endings.pid, cpu_s=5)
    process.close()


def test_a_folder_that_could_not_be_read_once_is_read_again(directory: Path, tmp_path: Path) -> None:
    moved = directory.rename(tmp_path / "elsewhere")
    process = TokenizerProcess(directory)
    with pytest.raises(InvalidArgumentError):
        process.call(endings.pid, cpu_s=5)
    moved.rename(directory)

    assert process.call(endings.pid, cpu_s=5)
    process.close()


def test_a_service_with_a_thousand_connections_can_start_one(directory: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    connections = [os.dup(0) for _ in range(1100)]
    process = TokenizerProcess(directory)
    try:
        assert process.call(endings.pid, cpu_s=5)
    finally:
        process.close()
        for each in connections:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
