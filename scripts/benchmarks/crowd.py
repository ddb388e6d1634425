"""Load test of a running search server: clients that send pictures without a pause.

python scripts/benchmarks/crowd.py http://127.0.0.1:8000 PICTURES [--clients 16] [--seconds 60]

PICTURES is a file, a folder or a glob pattern. Each client sends one picture after another. Prints requests per second,
the latency that the clients measure, and the time of each stage that the server reports, in milliseconds.
"""

import argparse
import random
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from fashion_cnn.pictures import find_pictures

# Requests of each client before the measured ones.
WARM_UP = 3


def run_client(
    address: str, files: list[Path], number: int, seconds: float
) -> list[tuple[int, float, dict[str, float]]]:
    """Run one client; returns status, latency and the server's stages of each request, in milliseconds."""
    rng = random.Random(number)
    responses = []
    with httpx.Client(base_url=address, timeout=60) as client:
        for turn in range(-WARM_UP, 1_000_000):
            if turn == 0:
                end = time.perf_counter() + seconds
            elif turn > 0 and time.perf_counter() > end:
                break
            content = rng.choice(files).read_bytes()
            started = time.perf_counter()
            response = client.post("/api/search", files={"picture": ("picture", content)})
            latency = (time.perf_counter() - started) * 1000
            if turn >= 0:
                stages = response.json()["milliseconds"] if response.status_code == 200 else {}
                responses.append((response.status_code, latency, stages))
    return responses


def print_percentiles(name: str, milliseconds: list[float]) -> None:
    cuts = statistics.quantiles(milliseconds, n=20)
    print(f"  {name:<28} p50 {cuts[9]:7.1f} ms, p95 {cuts[18]:7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="address of the server, such as http://127.0.0.1:8000")
    parser.add_argument("pictures", help="pictures to send: a file, a folder or a glob pattern")
    parser.add_argument("--clients", type=int, default=16, help="number of parallel clients")
    parser.add_argument("--seconds", type=float, default=60, help="seconds of load")
    options = parser.parse_args()
    files = list(find_pictures(options.pictures).paths)
    with ThreadPoolExecutor(options.clients) as pool:
        numbers = range(options.clients)
        results = pool.map(lambda number: run_client(options.address, files, number, options.seconds), numbers)
        responses = [response for of_client in results for response in of_client]
    statuses = Counter(status for status, _, _ in responses)
    print(
        f"{options.clients} clients, {options.seconds:.0f} s: {len(responses) / options.seconds:.0f} searches/s, "
        f"responses by status {dict(statuses)}"
    )
    print_percentiles("latency of the clients", [latency for _, latency, _ in responses])
    stages = [stages for _, _, stages in responses if stages]
    for stage in stages[0]:
        print_percentiles(stage, [milliseconds[stage] for milliseconds in stages])
    print_percentiles("sum of the stages", [sum(milliseconds.values()) for milliseconds in stages])


if __name__ == "__main__":
    main()
