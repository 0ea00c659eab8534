"""FSDP2 over two ranks: a step equals that of one rank, and what is saved is whole."""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bench import models
from bench.gpu_check.check import Check, Figures, Setting, Skipped, forget_peak, peak_gib, relative_error, require
from bench.models import Size
from madpo.jobs.training import OptimizerParameters
from madpo_trainer.optimizer import Optimizer
from madpo_trainer.sharding import gathered, shard
from madpo_trainer.trained_weights import saved_state

_SMALL = Size(2, 256, 512, 8, 2, 1024)
_RANKS = 2


def sharding(setting: Setting) -> Figures:
    """Weights after two steps of two ranks against one; peak memory while saving over that of a step."""
    if setting.is_cuda and torch.cuda.device_count() < _RANKS:
        raise Skipped(f"there is one GPU, and it takes {_RANKS}")
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.pt"
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        mp.spawn(_rank, args=(setting.is_cuda, store.port, str(results)), nprocs=_RANKS)
        found: dict[str, Any] = torch.load(results)
    alone = models.causal_lm(_SMALL).to(setting.device)
    _train(alone, Optimizer(alone, OptimizerParameters(learning_rate=1e-3), total_steps=2), range(4), setting.device)
    error = max(relative_error(found["weights"][name], tensor) for name, tensor in alone.state_dict().items())
    figures = {
        "relative_error": float(f"{error:.2g}"),
        "step_peak_gib": found["step_peak"],
        "save_peak_gib": found["save_peak"],
    }
    require(error <= (1e-3 if setting.is_cuda else 1e-5), "two ranks leave other weights than one", figures)
    if setting.is_cuda:
        require(found["save_peak"] <= 1.1 * found["step_peak"], "saving takes more memory than a step", figures)
    return figures


def _rank(rank: int, is_cuda: bool, port: int, results: str) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo", store=store, rank=rank, world_size=_RANKS)
    model = models.causal_lm(_SMALL)
    shard(model, device, precision="fp32")
    model.to(device)
    optimizer = Optimizer(model, OptimizerParameters(learning_rate=1e-3), total_steps=2)
    forget_peak(device)
    _train(model, optimizer, range(2 * rank, 2 * rank + 2), device, ranks=_RANKS)
    step_peak = peak_gib(device)
    forget_peak(device)
    weights = saved_state(model, keep=rank == 0)
    dict(gathered(optimizer.tensors().items(), keep=rank == 0))
    if rank == 0:
        torch.save({"weights": weights, "step_peak": step_peak, "save_peak": peak_gib(device)}, results)
    dist.destroy_process_group()


def _train(model: Any, optimizer: Optimizer, rows: range, device: torch.device, *, ranks: int = 1) -> None:
    """Two steps over the rows; gradients are summed over all rows of all ranks."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, _SMALL.vocabulary, (4, 48), generator=generator).to(device)
    for step in range(2):
        logits = model(input_ids=ids[rows.start : rows.stop]).logits
        (logits.float().square().mean(dim=(1, 2)).sum() / 4).backward()
        if ranks > 1:
            for parameter in optimizer.trainable:
                if type(parameter.data).__name__ != "DTensor" and parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
        optimizer.clip()
        optimizer.step(step)


CHECKS = (Check("sharding", sharding, 120),)
