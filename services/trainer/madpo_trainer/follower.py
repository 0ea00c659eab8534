"""A host that lends its ranks to the jobs of host 0.

Host 0 takes jobs from the queue; while it trains one, its torchrun listens at the address where ranks meet. A follower
tries that address until somebody answers, starts torchrun of its own, and keeps the connection: when it ends, the
attempt of host 0 has ended, and what is left of the run here ends too. So a follower is never a party to two attempts,
and joins the next one within seconds. It reports nothing: its ranks get the job from rank 0.
"""

import asyncio
import contextlib
import logging
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from madpo.background import EssentialTask
from madpo.worker.attempt import wait
from madpo.worker.child import Child
from madpo.worker.worker import trim_copies
from madpo.worker.workspace import hold_lifeline, read_tail
from madpo_trainer.settings import TrainerSettings

logger = logging.getLogger(__name__)

_TRY_PERIOD_S = 1.0
_CONNECT_TIMEOUT_S = 5.0
_LEAVE_S = 10.0
"""How long the ranks here may take to end by themselves once the attempt of host 0 has ended."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""Notices within a minute that host 0 vanished without a word."""


class FollowerService:
    """Takes part in the attempts of host 0; a service for `madpo.rpc.server.run_service`.

    Args:
        settings: Where host 0 is, and how runs are watched.
        command: The ranks of this host, given a workspace directory.
    """

    def __init__(self, settings: TrainerSettings, *, command: Callable[[Path], Sequence[str]]) -> None:
        self._settings, self._command = settings, command
        self._stop = asyncio.Event()
        self._following: EssentialTask | None = None

    def add_to_server(self, server: object) -> tuple[str, ...]:
        """Nothing to call: health is all such a service answers."""
        return ()

    async def start(self) -> None:
        """Look out for host 0; it need not be there yet."""
        self._following = EssentialTask(self._follow(), name="the follower")

    async def stop(self) -> None:
        """Ask the run for a checkpoint, and leave once it has ended or its grace is over.

        Raises:
            InternalError: The service had ended by itself; any exception of it likewise.
        """
        if self._following is not None:
            await self._following.end(self._stop.set)

    async def _follow(self) -> None:
        logger.info("following", extra={"leader": f"{self._settings.master_addr}:{self._settings.master_port}"})
        while not self._stop.is_set():
            connection = await self._connect()
            if connection is not None:
                reader, writer = connection
                try:
                    await self._take_part(reader)
                finally:
                    writer.close()
                await trim_copies(self._settings)
            await wait(self._stop, _TRY_PERIOD_S)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the torchrun of host 0; None while it has no job."""
        with contextlib.suppress(OSError):  # also TimeoutError
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(self._settings.master_addr, self._settings.master_port)
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
            return reader, writer
        return None

    async def _take_part(self, leader: asyncio.StreamReader) -> None:
        """Run the ranks of this host for one attempt."""
        workspace = self._settings.workspace / "follower"
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True, mode=0o700)
        log_path = workspace / "run.log"
        logger.info("taking part in a job")
        with hold_lifeline(workspace):
            child = Child.start(self._command(workspace), log_path=log_path, settings=self._settings)
            leader_gone = asyncio.create_task(_until_closed(leader))
            try:
                await self._until_exit(child, workspace, leader_gone)
            finally:
                child.kill()
                exit_code = await child.exit_code()
                leader_gone.cancel()
        level = logging.INFO if exit_code == 0 else logging.WARNING
        fields = {"exit_code": exit_code} | ({"log": read_tail(log_path, 20)} if exit_code else {})
        logger.log(level, "the part in the job has ended", extra=fields)

    async def _until_exit(self, child: Child, workspace: Path, leader_gone: asyncio.Task[None]) -> None:
        """Pass on the wish to stop; kill what outlives its grace, or the leader."""
        now = asyncio.get_running_loop().time
        deadlines: dict[str, float] = {}
        while not child.exited.done():
            if leader_gone.done():
                deadlines.setdefault("gone", now() + _LEAVE_S)
            if self._stop.is_set():
                (workspace / "stop").write_text("drain")
                deadlines.setdefault("stop", now() + self._settings.stop_grace_s)
            if deadlines and now() >= min(deadlines.values()):
                child.kill()
            await asyncio.wait({child.exited}, timeout=self._settings.poll_s)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Return once the other side has closed the connection, or is gone."""
    with contextlib.suppress(OSError):
        await reader.read()
