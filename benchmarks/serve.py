"""How fast a served run answers: latency and throughput of one client and of several, and whether any request is lost.

    python benchmarks/serve.py --requests 1000 --clients 8 --out results -- +experiment=quickstart

It starts `python -m retro_lab task=serve` with the overrides after `--`, which are those of a trained run, and sends
real requests. One client, which never waits for another, is the measure of what the others cost.
"""

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from side_by_side import origin

WORDS = (
    "import", "return", "class", "def", "for", "in", "range", "numpy", "array", "shape", "value", "error", "path",
    "name", "self", "None", "True", "with", "open",
)  # fmt: skip
TOKENS = 16
"""Tokens that a prompt is continued by."""
TIMEOUT = 600


class Measured(NamedTuple):
    """What the clients saw."""

    lost: int
    busy: int
    half: float
    most: float
    rate: float


def main() -> None:
    """Measure, print the table and, with `--out`, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, help="folder for serve.md")
    parser.add_argument("overrides", nargs="+", help="of a trained run, after --")
    arguments = parser.parse_args()
    with served(arguments.overrides) as url:
        report = measure(url, arguments.requests, arguments.clients)
    print(report, end="")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "serve.md").write_text(report, encoding="utf-8")


@contextmanager
def served(overrides: list[str]) -> Iterator[str]:
    """Serve a run and yield its address."""
    command = [sys.executable, "-m", "retro_lab", *overrides, "task=serve", "task.port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        if not url:
            sys.exit(server.wait() or 1)
        try:
            yield url
        finally:
            server.terminate()


def measure(url: str, requests: int, clients: int) -> str:
    """Return the table."""
    with urllib.request.urlopen(f"{url}/health", timeout=TIMEOUT) as answer:
        facts = json.load(answer)
    kinds: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
        "search": lambda number: ("search", {"query": text(number), "n_docs": 2}),
        "generate": lambda number: ("generate", {"prompt": text(number), "max_tokens": TOKENS}),
        "nine searches to one generation": lambda number: kinds["search" if number % 10 else "generate"](number),
    }
    lines = []
    for name, body in kinds.items():
        whole = requests // 10 if name == "generate" else requests
        for among, count in ((1, whole // 4), (clients, whole)):
            found = load(url, body, count, among)
            lines.append(
                f"| {name} | {among} | {count:,} | {found.lost} | {found.busy} | {1000 * found.half:.1f} | "
                f"{1000 * found.most:.1f} | {found.rate:.1f} |"
            )
    head = [
        f"# Serving\n\n{origin(torch.device('cpu'))}\n",
        f"{facts['parameters']:,} parameters, k = {facts['k']}, {facts['database']}. Searches of one text for 2 "
        f"neighbors; generations of {TOKENS} tokens.\n",
        "| Requests | Clients | Sent | Lost | Told to wait | p50 ms | p99 ms | Each second |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    return "\n".join([*head, *lines]) + "\n"


def load(url: str, body: Callable[[int], tuple[str, dict[str, Any]]], count: int, clients: int) -> Measured:
    """Send `count` requests from several clients, each of which sends its next when its last is answered."""
    numbers = itertools.count()

    def client() -> list[tuple[float, bool, int]]:
        seen = []
        while (number := next(numbers)) < count:
            begun = time.perf_counter()
            answered, busy = ask(url, *body(number))
            seen.append((time.perf_counter() - begun, answered, busy))
        return seen

    ask(url, *body(0))
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seen = [one for found in [pool.submit(client) for _ in range(clients)] for one in found.result()]
    taken = time.perf_counter() - begun
    seconds = sorted(second for second, _, _ in seen)
    assert len(seconds) == count
    return Measured(
        lost=sum(not answered for _, answered, _ in seen),
        busy=sum(busy for _, _, busy in seen),
        half=statistics.median(seconds),
        most=seconds[min(count - 1, int(count * 0.99))],
        rate=count / taken,
    )


def ask(url: str, address: str, body: dict[str, Any]) -> tuple[bool, int]:
    """Return whether a request got its own answer, and how often it was told to come back first."""
    request = urllib.request.Request(
        f"{url}/{address}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for busy in itertools.count():
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                content = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return False, busy
            time.sleep(float(error.headers["Retry-After"]))
            continue
        except OSError:
            return False, busy
        if address == "search":
            return content["query"] == body["query"] and len(content["neighbors"]) == 1, busy
        return body["prompt"] == "".join(part["prompt"] for part in content["texts"][0]["stretches"]), busy
    raise AssertionError


def text(number: int) -> str:
    """Return some words, other ones for each request."""
    return " ".join(random.Random(number).choices(WORDS, k=12))


if __name__ == "__main__":
    main()
