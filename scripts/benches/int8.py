"""The same ranking model in float32, bfloat16 and eight bits: time, size and what is lost.

Once as it is, and once with late interaction, as two graphs: there the segments are kept, and what is timed is a user
who comes back. The same graphs are also run by OpenVINO, where that is installed.
"""

from importlib.util import find_spec
from pathlib import Path

from benches.compressed import PAIRS, compressed, ms_a_request, quality, ranking_run, requests, torch_answer
from benches.harness import Bench, console

from m6rec.assemble import Experiment
from m6rec.backbones.base import Backbone
from m6rec.compressors.cost import megabytes
from m6rec.compressors.weights import merged
from m6rec.edge.folder import GRAPH_FILES
from m6rec.edge.recommender import EdgeRecommender
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.late_interaction.scorer import LateScorer

PRECISIONS = {"onnx_fp32": "fp32", "int8": "int8", "int8_static": "int8-static"}


def run(bench: Bench) -> None:
    bench.each_seed(one_seed)
    bench.protocol = {
        "task": "rating of 4 or more by time, words only; LoRA folded into the weights everywhere",
        "pairs": f"{PAIRS} of test",
        "time": "CPU-ms a request on one thread, median of 7 interleaved rounds",
        "openvino": "the same file, in float32 arithmetic where it has not eight bits",
        "over_fp32": "torch float32 over int8; over_onnx_fp32 is onnxruntime's float32 over int8",
    }


def one_seed(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Return one seed's figures."""
    plain, late = ranking_run(bench, seed), ranking_run(bench, seed, "ranking-late")
    figures = in_all_precisions(bench, plain, plain.backbone, seed)
    assert isinstance(late.backbone, LateBackbone)
    # A trunk that torch kept would be work that the graphs do.
    split = in_all_precisions(bench, late, LateScorer(late.backbone, num_trunks=0), seed)
    figures |= {f"split_{name}": value for name, value in split.items()}
    console.print({name: round(value, 4) for name, value in figures.items()})
    return {"figures": figures}


def in_all_precisions(bench: Bench, run: Experiment, backbone: Backbone, seed: int) -> dict[str, float]:
    """Return AUC, CPU-ms a request and MB of a run in each precision, and what eight bits win and lose.

    Args:
        bench: whose work folder.
        run: a ranking run.
        backbone: what torch answers with.
        seed: of the run.
    """
    folder = Path(run.recipe.out)
    precisions = {"int8": "int8"} if bench.quick else PRECISIONS
    edges = {
        name: EdgeRecommender(
            compressed(bench, folder, "quantize", f"{folder.name}-{name}", [f"precision={precision}"])
        )
        for name, precision in precisions.items()
    }
    if find_spec("openvino") is not None:
        edges |= {f"openvino_{name}": EdgeRecommender(edge.folder, engine="openvino") for name, edge in edges.items()}
    told = requests(run.task, "test", 60 if bench.quick else PAIRS)
    ways = {
        "torch_fp32": torch_answer(run.task, backbone),
        "torch_bf16": torch_answer(run.task, backbone, bf16=True),
        **{
            name: lambda request, edge=edge: edge.answer(request.tree, request.numbers, edge.depth)
            for name, edge in edges.items()
        },
    }
    with merged(backbone):
        figures = {f"{name}_auc": quality(answer, told) for name, answer in ways.items()}
        times = ms_a_request(ways, told)
    figures |= {f"{name}_cpu_ms": value for name, value in times.items()}
    figures |= {
        f"{name}_megabytes": sum(megabytes(edges[name].folder / file) for file in GRAPH_FILES) for name in precisions
    }
    figures["auc_loss"] = figures["torch_fp32_auc"] - figures["int8_auc"]
    figures["over_fp32"] = times["torch_fp32"] / times["int8"]
    if not bench.quick:
        figures["over_onnx_fp32"] = times["onnx_fp32"] / times["int8"]
    for name in precisions:
        if f"openvino_{name}" in times:
            figures[f"openvino_{name}_over_onnxruntime"] = times[name] / times[f"openvino_{name}"]
    figures["bf16_over_fp32"] = times["torch_fp32"] / times["torch_bf16"]
    return figures
