"""Settings of the trainer, read from `MADPO_TRAINER_*`."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from madpo.config import WorkerSettings


class TrainerSettings(WorkerSettings):
    """A worker that trains; the run it launches reads the same settings."""

    model_config = SettingsConfigDict(env_prefix="MADPO_TRAINER_")

    nproc_per_node: int | Literal["auto", "gpu"] = "auto"
    """Ranks on this host. `gpu` means one per visible GPU; `auto` the same, and one rank where there is none."""
    nnodes: int = Field(default=1, ge=1)
    """Hosts a job trains on; all are given the same number."""
    node_rank: int = Field(default=0, ge=0)
    """Number of this host. Host 0 takes jobs from the queue, the others follow it."""
    master_addr: str | None = None
    """Name or address of host 0, as every host (also host 0) reaches it; needed when there are several."""
    master_port: int = Field(default=29500, ge=1, le=65535)
    """Port of host 0 at which the ranks meet; open to the other hosts only."""
    join_timeout_s: float = Field(default=900.0, gt=0)
    """How long a job waits for all hosts to take part, in seconds."""
    collective_timeout_s: float = Field(default=600.0, gt=10)
    """How long a rank waits for the others before it gives the attempt up, in seconds.

    Only a host that vanishes without a word is noticed this late: the end of a process breaks its connections. A host
    that waits for the object store, or fetches a large model, may take longer, since it says that it is there.
    """

    checkpoint_every_s: float = Field(default=600.0, gt=0)
    """A checkpoint this often, in seconds, besides those after `training.checkpoint_every_steps`: no more work than
    that, and what a checkpoint takes to be stored, is lost when a run is killed. For checkpoints by time training
    stands for a twentieth of it at most; one is begun when the one before is stored."""

    @model_validator(mode="after")
    def _hosts_agree(self) -> Self:
        if isinstance(self.nproc_per_node, int) and self.nproc_per_node < 1:
            raise ValueError(f"nproc_per_node must be at least 1, `auto` or `gpu`, got {self.nproc_per_node}")
        if self.node_rank >= self.nnodes:
            raise ValueError(f"node_rank must be below nnodes={self.nnodes}, got {self.node_rank}")
        if self.nnodes > 1 and self.master_addr is None:
            raise ValueError(f"nnodes={self.nnodes} needs master_addr, the address of the host with node_rank 0")
        return self


class RankEnvironment(BaseSettings):
    """What torchrun tells each process it starts; without torchrun there is one."""

    model_config = SettingsConfigDict(frozen=True)

    world_size: int = 1
    local_rank: int = 0


ONE_RANK = RankEnvironment(world_size=1, local_rank=0)
"""A single one, whatever other launchers left in the environment."""
