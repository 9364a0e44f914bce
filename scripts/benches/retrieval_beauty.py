"""Amazon Beauty, LlamaRec split: leave-one-out, all items. LlamaRec-7B .0554 / .0971, LRURec .0533 / .0916."""

from benches.harness import TRIALS, Bench

from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.amazon import Amazon

BASELINES = ("popularity", "itemknn", "markov", "sasrec")
METRICS = ("ndcg@10", "recall@10")
WORDS = ("training.max_cpu_seconds=1500",)


def run(bench: Bench) -> None:
    source = Amazon(Amazon.Config(path=str(bench.folder("amazon-beauty")), layout="llamarec"))
    dataset = bench.prepare(source, "beauty", PrepareConfig(split="given", ties="file"))
    baselines = BASELINES[:3] if bench.quick else BASELINES
    rows = []
    for seed in range(bench.seeds):
        experiment = bench.train("retrieval", dataset, "retrieval-beauty", seed, WORDS)
        rows.append(bench.compare(experiment, baselines, TRIALS, "beauty"))
    bench.collect(rows, METRICS)
    if not bench.quick:
        bench.ratio("ours_over_sasrec", "ours_ndcg@10", "sasrec_ndcg@10")
        # What the id residual gives: the same recipe by text alone, one seed.
        experiment = bench.train("retrieval", dataset, "text-only", 0, [*WORDS, "task.id_residual=false"])
        bench.collect([bench.compare(experiment, (), 1, "beauty-text-only")], METRICS, prefix="text_only_")
