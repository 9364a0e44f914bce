"""Export to a folder that runs without torch, its weights in eight bits. Knows neither a task's words nor a loop."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from m6rec.backbones.base import Backbone
from m6rec.backbones.conditions import condition_size
from m6rec.compressors.base import Subject
from m6rec.compressors.cost import cpu_ms, megabytes
from m6rec.compressors.export import Example, RankingGraph, check_parity, depths_of, export_graph, quiet, whole_part
from m6rec.compressors.split import lead_of, split_parts
from m6rec.data.features import NUM_FEATURES
from m6rec.edge.folder import SERVED, TOKENIZER_FILE, WORDS_FOLDER, EdgeCard, EdgeCatalogue
from m6rec.edge.graphs import open_graphs
from m6rec.edge.recommender import EdgeRecommender
from m6rec.errors import ConfigError, RunError, needs
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.trees import read_tree

# Requests that a folder is timed on.
TIMED = 4
PACKAGES = ("m6rec", "torch", "transformers", "onnx", "onnxruntime")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizeConfig:
    """How weights and activations are rounded."""

    precision: Literal["int8", "int8-static", "fp32"] = "int8"
    """`int8`: weights once, activations at every request by their own range; `int8-static`: activations by ranges
    measured on training requests; `fp32`: nothing, the export alone. Changes results slightly, and speed."""
    per_channel: bool = True
    """Whether every output of a matrix has a scale of its own. Changes results slightly."""
    calibration: int = 32
    """Training requests that ranges are measured on, for `int8-static`. Changes results slightly."""

    def __post_init__(self) -> None:
        if self.calibration < 1:
            raise ConfigError(f"calibration: got {self.calibration}, expected 1 or more")


class Quantize:
    """Export a ranking run to ONNX with 8-bit weights: a folder that runs on numpy, onnxruntime and tokenizers.

    A run with exits keeps them all: the folder answers at any depth. One with late interaction becomes two graphs,
    segments alone and all of them together, with a cache of segments between them.

    Args:
        config: precision.

    Source: M6-Rec (arXiv 2205.08084), M6-Edge: 8-bit quantisation at deployment; rounding is onnxruntime's.
    """

    Config = QuantizeConfig

    def __init__(self, config: QuantizeConfig | None = None) -> None:
        self.config = config or QuantizeConfig()

    def compress(self, subject: Subject, out: Path) -> dict[str, Any]:
        """Write the edge folder.

        Raises:
            RunError: no ranking run, or the graph does not answer as the model does.
        """
        task, backbone = _ranking(subject).eval(), subject.backbone.eval()
        examples = _examples(task, max(2, self.config.calibration))
        if isinstance(backbone, LateBackbone):
            parts = split_parts(backbone, task, examples)
        else:
            parts = [whole_part(RankingGraph(backbone, task), examples)]
        card = _card(task, backbone, self.config.precision)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            for part in parts:
                export_graph(part, backbone, work / part.file)
            parity = check_parity(task, backbone, open_graphs(work, card), examples[:2])
            with quiet():
                for part in parts:
                    self._round(work / part.file, out / part.file, part.inputs)
            before = megabytes(work)
        _write_rest(task, card, out)
        size = sum(megabytes(out / part.file) for part in parts)
        whole = sum(megabytes(out / name) for name in SERVED)
        logger.info("%s: %.2f MB (%.2f MB in float32), with words and items %.2f MB", out, size, before, whole)
        sizes = {"graph_megabytes": size, "float32_megabytes": before, "megabytes": whole}
        return {**sizes, "parity": parity, "depths": _by_depth(subject, out, examples[:TIMED])}

    def _round(self, plain: Path, path: Path, inputs: Sequence[dict[str, Any]]) -> None:
        """Write the graph in the chosen precision."""
        if self.config.precision == "fp32":
            shutil.copyfile(plain, path)
            return
        with needs("edge"):
            from onnxruntime import quantization
        options: dict[str, Any] = {"per_channel": self.config.per_channel, "weight_type": quantization.QuantType.QInt8}
        if self.config.precision == "int8":
            quantization.quantize_dynamic(plain, path, extra_options={"MatMulConstBOnly": True}, **options)
            return
        quantization.quantize_static(
            plain,
            path,
            _Reader(inputs[: self.config.calibration]),
            quant_format=quantization.QuantFormat.QDQ,
            # Activations have no sign here: AVX512-VNNI multiplies unsigned by signed bytes.
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            extra_options={"MatMulConstBOnly": True},
            **options,
        )


def _by_depth(subject: Subject, out: Path, examples: Sequence[Example]) -> list[dict[str, float]]:
    """Return milliseconds a request (CPU, one thread) and held-out figures of a folder at every depth."""
    edge = EdgeRecommender(out)

    def answers(depth: int) -> Callable[[], object]:
        return lambda: [edge.answer(tree, numbers, depth) for tree, numbers in examples]

    costs = cpu_ms({str(depth): answers(depth) for depth in edge.card.depths})
    return [
        {
            "depth": depth,
            "ms": costs[str(depth)] / len(examples),
            **subject.judge(lambda tree, numbers, depth=depth: edge.answer(tree, numbers, depth)),  # type: ignore[misc]
        }
        for depth in edge.card.depths
    ]


class _Reader:
    """Requests as onnxruntime's calibration asks for them: one a call, then nothing."""

    def __init__(self, inputs: Sequence[dict[str, Any]]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next request's inputs."""
        return next(self._left, None)


def _ranking(subject: Subject) -> Ranking:
    if not isinstance(subject.task, Ranking):
        raise RunError(f"{subject.folder} holds the task {subject.task.name!r}; only ranking runs are exported")
    if subject.recipe.get("scenes") is not None:
        raise RunError(f"{subject.folder} tells scenes apart, which an exported graph cannot; export another run")
    if condition_size(subject.backbone) is not None:
        raise RunError(
            f"{subject.folder} reads candidates under conditions, which an exported graph does not take; export a run "
            "with another tuner"
        )
    return subject.task


def _examples(task: Ranking, number: int) -> list[Example]:
    """Return training requests, spread over all of them."""
    rows = task.examples()
    chosen = np.unique(np.linspace(0, len(rows) - 1, number).astype(int)).tolist()
    found = [rows[row] for row in chosen]
    return [(read_tree(row), np.asarray(row["numbers"], np.float32).reshape(-1, NUM_FEATURES)) for row in found]


def _write_rest(task: Ranking, card: EdgeCard, out: Path) -> None:
    """Write tokenizer, items, words and, last, the card."""
    task.tokenizer.tokenizer.backend_tokenizer.save(str(out / TOKENIZER_FILE))
    records = [task.catalogue.record(place) for place in range(len(task.catalogue))]
    EdgeCatalogue(records, task.item_statistics.cpu().numpy()).write(out)
    shutil.rmtree(out / WORDS_FOLDER, ignore_errors=True)
    for shelf in ("prompts", "data_templates"):
        (out / WORDS_FOLDER / shelf).mkdir(parents=True)
    prompt = task.writer.prompt.path
    shutil.copyfile(prompt, out / WORDS_FOLDER / "prompts" / prompt.name)
    task.renderer.save(out / WORDS_FOLDER / "data_templates" / f"{task.renderer.domain}.yaml")
    card.write(out, {name: version(name) for name in PACKAGES})


def _card(task: Ranking, backbone: Backbone, precision: str) -> EdgeCard:
    tokenizer, config, depths = task.tokenizer.tokenizer, task.config, depths_of(backbone)
    roles = ("bos", "eos", "sep", "cls", "pad", "mask", "unk")
    special = {role: getattr(tokenizer, f"{role}_token", None) for role in roles}
    late = backbone if isinstance(backbone, LateBackbone) else None
    return EdgeCard(
        task=task.name,
        domain=task.renderer.domain,
        prompt=task.writer.prompt.path.stem,
        depths=depths,
        depth=depths[-1],
        max_tokens=task.writer.max_tokens,
        max_events=config.max_events,
        max_branches=config.max_branches,
        threshold=config.threshold,
        smoothing=config.smoothing,
        special={role: str(token) for role, token in special.items() if token is not None},
        precision=precision,
        lead=() if late is None else lead_of(late),
        max_segments=None if late is None else late.config.max_segments,
    )
