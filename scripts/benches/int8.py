"""The same ranking model in float32, bfloat16 and eight bits: time, size and what is lost."""

from pathlib import Path

from benches.compressed import PAIRS, compressed, ms_a_request, quality, ranking_run, requests, torch_answer
from benches.harness import Bench, console

from m6rec.compressors.cost import megabytes
from m6rec.compressors.weights import merged
from m6rec.edge.folder import GRAPH_FILE
from m6rec.edge.recommender import EdgeRecommender

PRECISIONS = {"onnx_fp32": "fp32", "int8": "int8", "int8_static": "int8-static"}


def run(bench: Bench) -> None:
    bench.each_seed(one_seed)
    bench.protocol = {
        "task": "rating of 4 or more by time, words only; LoRA folded into the weights everywhere",
        "pairs": f"{PAIRS} of test",
        "time": "CPU-ms a request on one thread, median of 7 interleaved rounds",
        "over_fp32": "torch float32 over int8; over_onnx_fp32 is onnxruntime's float32 over int8",
    }


def one_seed(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Return one seed's figures."""
    plain = ranking_run(bench, seed)
    folder = Path(plain.recipe.out)
    precisions = {"int8": "int8"} if bench.quick else PRECISIONS
    edges = {
        name: EdgeRecommender(compressed(bench, folder, "quantize", f"{name}-{seed}", [f"precision={precision}"]))
        for name, precision in precisions.items()
    }
    told = requests(plain.task, "test", 60 if bench.quick else PAIRS)
    ways = {
        "torch_fp32": torch_answer(plain.task, plain.backbone),
        "torch_bf16": torch_answer(plain.task, plain.backbone, bf16=True),
        **{
            name: lambda request, edge=edge: edge.answer(request.tree, request.numbers, edge.depth)
            for name, edge in edges.items()
        },
    }
    with merged(plain.backbone):
        figures = {f"{name}_auc": quality(answer, told) for name, answer in ways.items()}
        times = ms_a_request(ways, told)
    figures |= {f"{name}_cpu_ms": value for name, value in times.items()}
    figures |= {f"{name}_megabytes": megabytes(edge.folder / GRAPH_FILE) for name, edge in edges.items()}
    figures["auc_loss"] = figures["torch_fp32_auc"] - figures["int8_auc"]
    figures["over_fp32"] = times["torch_fp32"] / times["int8"]
    if not bench.quick:
        figures["over_onnx_fp32"] = times["onnx_fp32"] / times["int8"]
    figures["bf16_over_fp32"] = times["torch_fp32"] / times["torch_bf16"]
    console.print({name: round(value, 4) for name, value in figures.items()})
    return {"figures": figures}
