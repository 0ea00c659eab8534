"""A caller of its own process beside a load: how long an answer takes that somebody else's crowd does not hold up.

A process that sends ten times what a service can do is busy itself, and what it measures is mostly its own waiting.
This one has one request on its way at a time, and pauses after each.
"""

import json
import subprocess
import sys
import threading
import time
from typing import Any

import grpc

from bench.scoring.pairs import make_pairs
from madpo.rpc.channel import call_metadata
from madpo.rpc.convert import pair_to_proto
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceStub

_PAUSE_S = 0.02
_DEADLINE_S = 10.0


class Bystander:
    """The process, idle until it is asked."""

    def __init__(self, target: str, model_id: str, token: str) -> None:
        command = [sys.executable, "-m", "bench.scoring.bystander", target, model_id, token]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def begin(self) -> None:
        """Call again and again from now on."""
        self._say("begin")

    def end(self) -> dict[str, list[float]]:
        """Call no more; seconds that each call took, by status code."""
        self._say("end")
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> None:
    target, model_id, token = sys.argv[1:]
    pair = pair_to_proto(make_pairs(1, prompt=24, response=24)[0])
    request = reward.ScorePairsRequest(model_id=model_id, pairs=[pair])
    with grpc.insecure_channel(target) as channel:
        stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        calls: dict[str, list[float]] = {}

        def call() -> None:
            sent = time.perf_counter()
            try:
                stub.ScorePairs(request, timeout=_DEADLINE_S, metadata=call_metadata(token))
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
            calls.setdefault(code, []).append(time.perf_counter() - sent)

        def go(over: threading.Event) -> None:
            while not over.wait(_PAUSE_S):
                call()

        call()
        print(json.dumps(None), flush=True)
        while sys.stdin.readline():
            calls.clear()
            over = threading.Event()
            thread = threading.Thread(target=go, args=(over,))
            thread.start()
            sys.stdin.readline()
            over.set()
            thread.join()
            print(json.dumps(calls), flush=True)


if __name__ == "__main__":
    main()
