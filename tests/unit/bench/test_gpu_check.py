"""The check of a GPU host, small and on a CPU: its checks work, and what goes wrong is one line of its table."""

import sys

import pytest
import torch

from bench.gpu_check import kernels, losses, run
from bench.gpu_check.check import Check, CheckFailed, Setting
from bench.gpu_check.run import CHECKS

CPU = Setting.of("cpu")


@pytest.fixture(autouse=True)
def torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.filterwarnings("ignore")
def test_every_check_passes_small_on_a_cpu(check):
    assert check.run(CPU)


def test_a_wrong_kernel_is_found(monkeypatch):
    real = kernels.packed_attention

    def wrong(module, query, key, value, *arguments, **options):
        return real(module, query, key, value.roll(1, dims=2), *arguments, **options)

    monkeypatch.setattr(kernels, "packed_attention", wrong)

    with pytest.raises(CheckFailed, match="attention is off"):
        kernels.attention_over_rows(CPU)


def test_a_loss_that_is_off_on_the_device_is_found(monkeypatch):
    seen = set()
    steps = losses._steps

    def off(method, device):
        found = steps(method, device)
        if method.name == "dpo" and method.name in seen:
            found[1] = found[1] * (1 + 1e-4)
        seen.add(method.name)
        return found

    monkeypatch.setattr(losses, "_steps", off)

    with pytest.raises(CheckFailed, match="the loss of dpo is off"):
        losses.losses(CPU)


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("""print('{"status": "passed", "figures": {"a": 1}}')""", "passed", ""),
        ("import os; os.abort()", "failed", "ended with code -6"),
        ("raise RuntimeError('no kernel image')", "failed", "ended with code 1: RuntimeError: no kernel image"),
        ("import time; time.sleep(60)", "failed", "took longer than 0.9 s"),
    ],
)
def test_whatever_becomes_of_a_check_is_its_line(monkeypatch, tmp_path, program, status, reason):
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$(cat {tmp_path}/program)"\n')
    (tmp_path / "program").write_text(program)
    fake.chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(fake))

    result = run.run(Check("any", lambda setting: {}, limit_s=0.3 if "sleep" in program else 20), "cpu")

    assert result["status"] == status
    assert result["reason"].startswith(reason)
