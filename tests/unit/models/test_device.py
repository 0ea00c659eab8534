"""What a process may take of a GPU."""

import pytest
import torch

from madpo.config import ComputeSettings
from madpo.models.device import bound_gpu_memory
from madpo.models.memory import available_bytes


@pytest.mark.parametrize(("share", "set_to"), [(1.0, []), (0.25, [(0.25, 3)])])
def test_a_service_is_kept_to_its_share_of_the_gpu_it_computes_on(monkeypatch, share, set_to):
    asked = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: asked.append(given))
    settings = ComputeSettings(gpu_memory_fraction=share)

    bound_gpu_memory(settings, 3)
    assert asked == []  # no GPU here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    bound_gpu_memory(settings, 3)

    assert asked == set_to


@pytest.mark.parametrize(
    ("free", "held", "share", "expected"),
    [(50, 0, 1.0, 50), (50, 20, 1.0, 60), (50, 20, 0.25, 15), (50, 20, 0.05, -5)],
)
def test_free_is_what_others_left_and_what_torch_holds_unused_within_the_share(
    monkeypatch, free, held, share, expected
):
    taken = min(held, 10)
    for name, value in {
        "mem_get_info": (free, 100),
        "memory_reserved": held,
        "memory_allocated": taken,
        "get_per_process_memory_fraction": share,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)

    assert available_bytes(torch.device("cuda")) == expected
