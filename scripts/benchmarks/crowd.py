"""How the search's page bears a crowd: clients that send pictures to a running server without a pause.

python scripts/benchmarks/crowd.py http://127.0.0.1:8000 PICTURES [--clients 16] [--seconds 60]

PICTURES is a folder, glob or file. Each client sends one after another; the server says how long each stage took.
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

# Of each client, before what counts.
WARM_UP = 3


def ask(address: str, files: list[Path], number: int, seconds: float) -> list[tuple[int, float, dict[str, float]]]:
    """One client: of each search the status, the milliseconds that it took here, and those of the server's stages."""
    chance = random.Random(number)
    asked = []
    with httpx.Client(base_url=address, timeout=60) as client:
        for turn in range(-WARM_UP, 1_000_000):
            if turn == 0:
                end = time.perf_counter() + seconds
            elif turn > 0 and time.perf_counter() > end:
                break
            content = chance.choice(files).read_bytes()
            begun = time.perf_counter()
            answer = client.post("/api/search", files={"picture": ("picture", content)})
            taken = (time.perf_counter() - begun) * 1000
            if turn >= 0:
                stages = answer.json()["milliseconds"] if answer.status_code == 200 else {}
                asked.append((answer.status_code, taken, stages))
    return asked


def told(name: str, milliseconds: list[float]) -> None:
    cuts = statistics.quantiles(milliseconds, n=20)
    print(f"  {name:<28} p50 {cuts[9]:7.1f} ms, p95 {cuts[18]:7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("pictures")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    files = list(find_pictures(options.pictures).paths)
    with ThreadPoolExecutor(options.clients) as pool:
        asked = pool.map(lambda number: ask(options.address, files, number, options.seconds), range(options.clients))
        answers = [answer for those in asked for answer in those]
    statuses = Counter(status for status, _, _ in answers)
    print(
        f"{options.clients} clients, {options.seconds:.0f} s: {len(answers) / options.seconds:.0f} searches/s, "
        f"answers by status {dict(statuses)}"
    )
    told("as the clients see it", [taken for _, taken, _ in answers])
    stages = [stages for _, _, stages in answers if stages]
    for stage in stages[0]:
        told(stage, [one[stage] for one in stages])
    told("the stages together", [sum(one.values()) for one in stages])


if __name__ == "__main__":
    main()
