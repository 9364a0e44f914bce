"""A generated log of 1 M and 10 M rows through `m6rec data prepare csv`: rows a second, and peak memory."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from benches.harness import Bench

CHUNK = 500_000


def run(bench: Bench) -> None:
    for name, rows in (("10k", 10_000),) if bench.quick else (("1m", 1_000_000), ("10m", 10_000_000)):
        log = bench.work / f"log-{name}.csv"
        write_log(log, rows)
        started, cpu = time.perf_counter(), children_cpu_seconds()
        command = [sys.executable, "-m", "m6rec", "data", "prepare", "csv", "--from", str(log)]
        subprocess.run([*command, "--out", str(bench.work / f"prepared-{name}")], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        bench.figures[f"rows_per_second_{name}"] = rows / seconds
        bench.figures[f"rows_per_cpu_second_{name}"] = rows / (children_cpu_seconds() - cpu)
        # The largest child so far: the sizes are run from small to large.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        bench.figures[f"peak_megabytes_{name}"] = peak / 1e6
        log.unlink()
    bench.protocol = {"users": "rows / 40", "items": 50_000, "popularity": "Zipf", "split": "leave-one-out"}


def children_cpu_seconds() -> float:
    """Return the CPU time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_log(path: Path, rows: int) -> None:
    """Write a log in time order, in chunks."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            items = np.minimum(rng.zipf(1.3, count), 50_000)
            table = pa.table(
                {
                    "user": rng.integers(0, max(1, rows // 40), count),
                    "item": items,
                    "time": 1_600_000_000 + np.arange(start, start + count),
                    "event": rng.choice(["view", "cart", "buy"], count),
                }
            )
            pa.csv.write_csv(table, file, pa.csv.WriteOptions(include_header=start == 0))
