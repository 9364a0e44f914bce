"""The sample world: `make demo`'s own numbers, and the ceiling that its true probabilities set."""

import shutil
import time

from benches.harness import Bench, console

from m6rec.assemble import open_experiment
from m6rec.demo import run_demo

METRICS = ("ndcg@10", "recall@10")
SEARCHED = {"itemknn": 8, "markov": 8, "sasrec": 6}


def run(bench: Bench) -> None:
    rows = []
    for seed in range(bench.seeds):
        started, cpu = time.perf_counter(), time.process_time()
        out = bench.work / f"world-{seed}"
        rows.append(run_demo(out, console, quick=bench.quick, seed=seed))
        bench.details.setdefault("seconds", []).append(time.perf_counter() - started)
        bench.details.setdefault("cpu_seconds", []).append(time.process_time() - cpu)
    bench.collect(rows, METRICS)
    if not bench.quick:
        # The demo takes the baselines as they are, for time; here they are searched on validation (one seed).
        experiment = open_experiment(bench.work / "world-0" / "run")
        bench.collect([bench.compare(experiment, tuple(SEARCHED), SEARCHED, "searched")], METRICS, prefix="searched_")
    bench.figures["demo_seconds"] = max(bench.details["seconds"])
    bench.figures["demo_cpu_seconds"] = max(bench.details["cpu_seconds"])
    bench.protocol = rows[0].report.rows[0].protocol
    bench.ratio("ours_over_oracle", "ours_ndcg@10", "oracle_ndcg@10")
    if bench.json:
        bench.json.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(out / "report.png", bench.json.with_suffix(".png"))
