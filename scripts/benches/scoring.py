"""100 candidates of 16 tokens for a user with 20 events of 16: late interaction against what a server does without it.

Arms of one shape, interleaved: (a) every pair cross-encoded whole; (b) a sentence-transformers CrossEncoder; (c) the
user's keys and values reused by all candidates, in all layers; late interaction with 3 and 2 joint layers over cached
segments, and with pooled segments. (c) is our own scorer with no layer below the joint ones: as well made as ours.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from benches.harness import Bench, console
from benches.split_depth import fully_joint, judged, late_words
from rich.table import Table

from m6rec.backbones.base import Backbone
from m6rec.backbones.causal import CausalBackbone
from m6rec.backbones.resolve import resolve_backbone
from m6rec.errors import needs
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.late_interaction.config import LateInteractionConfig
from m6rec.late_interaction.scorer import LateScorer
from m6rec.text.batch import TokenBatch, collate
from m6rec.text.tokenize import TokenizedLayout

EVENTS, CANDIDATES, TOKENS = 20, 100, 16
PAIRS_AT_ONCE = 32
ROUNDS = 7
JOINT = 3
# What takes a minute is measured in the first round alone, on the first pairs, and counted as often as they fit.
SELDOM = ("full", "cross_encoder")
Runs = Mapping[str, Sequence[tuple[float, float]]]


def run(bench: Bench) -> None:
    for threads in (1,) if bench.quick else (1, 2):
        for shape in ("minilm",) if bench.quick else ("gpt2", "minilm"):
            found = bench.once(f"{shape}-{threads}", partial(measure, bench, shape, threads))
            report(bench, shape if threads == 1 else f"{shape}_2threads", found)
    for short, name in (("over_cross_encoding", "full"), ("over_kv_prefix", "kv_prefix")):
        if not bench.quick:
            bench.figures[short] = bench.figures[f"gpt2_late{JOINT}_over_{name}"]
    if bench.data is not None:
        joint = bench.once("joint", partial(judged, bench, "ml", "joint", fully_joint()))
        late = bench.once("depth-3", partial(judged, bench, "ml", "depth-3", late_words(3)))
        bench.figures |= {"joint_auc": joint["auc"], "late_auc": late["auc"], "auc_loss": joint["auc"] - late["auc"]}
    bench.protocol = {
        "request": f"{CANDIDATES} candidates of {TOKENS} tokens, {EVENTS} events of {TOKENS} tokens; the cache is hot",
        "rounds": 2 if bench.quick else ROUNDS,
        "seldom": f"{', '.join(SELDOM)}: one round, {PAIRS_AT_ONCE} pairs, times {CANDIDATES / PAIRS_AT_ONCE}",
        "ratios": "medians over rounds of CPU-seconds within one round; `_wall` of wall time",
    }


# ---- what is measured


def measure(bench: Bench, shape: str, threads: int) -> dict[str, list[tuple[float, float]]]:
    """Return (wall seconds, CPU-seconds) of every arm in every round."""
    torch.set_num_threads(threads)
    with torch.no_grad(), TemporaryDirectory() as folder:
        count, rounds = (CANDIDATES // 10, 2) if bench.quick else (CANDIDATES, ROUNDS)
        arms = arms_of(shape, Path(folder), count)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for number in range(-1, rounds):  # the first warms caches and threads up, and is not counted
            for name, arm in arms.items():
                if name in SELDOM and number != 0:
                    continue
                started, cpu = time.perf_counter(), time.process_time()
                arm()
                wall, cpu = time.perf_counter() - started, time.process_time() - cpu
                if number >= 0:
                    part = max(1.0, count / PAIRS_AT_ONCE) if name in SELDOM else 1.0
                    found[name].append((part * wall, part * cpu))
    torch.set_num_threads(1)
    return found


def arms_of(shape: str, folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """Return the arms over one model, for so many candidates."""
    backbone = resolve_backbone("minilm") if shape == "minilm" else gpt2_small()
    rng = np.random.default_rng(0)
    events, candidates = (segments(rng, number, TOKENS) for number in (EVENTS, count))
    end = backbone.tokenizer.convert_tokens_to_ids("[EOS]")
    branches = [[candidate[:-1], [end]] for candidate in candidates]
    request = collate([tree(events, branches)], 0)
    pairs = collate([tree(events, [branch]) for branch in branches[:PAIRS_AT_ONCE]], 0)
    arms: dict[str, Callable[[], object]] = {
        "full": partial(backbone, pairs),
        "cross_encoder": cross_encoder(backbone, folder, pairs.size),
        "kv_prefix": hot(backbone, request, layers=0),
    }
    for joint in (JOINT, 2):
        arms[f"late{joint}"] = hot(backbone, request, layers=backbone.num_layers - joint)
    arms[f"pooled{JOINT}"] = hot(backbone, request, layers=backbone.num_layers - JOINT, granularity="pooled")
    arms["new_event"] = new_event(backbone, rng)
    return arms


def hot(backbone: Backbone, request: TokenBatch, **settings: object) -> Callable[[], object]:
    """Return a request to a scorer that has its segments in the cache, and the user's trunk not."""
    scorer = LateScorer(LateBackbone(backbone, LateInteractionConfig(**settings)).eval(), num_trunks=0)  # type: ignore[arg-type]
    scorer.ends(request)
    return partial(scorer.ends, request)


def new_event(backbone: Backbone, rng: np.random.Generator) -> Callable[[], object]:
    """Return the reading of one event that nobody has had before."""
    late = LateBackbone(backbone, LateInteractionConfig(layers=backbone.num_layers - JOINT)).eval()
    scorer = LateScorer(late)

    def read() -> object:
        _, found = late.cut(collate([tree(segments(rng, 1, TOKENS), [])], 0))
        return scorer.vectors(found.table)

    return read


def cross_encoder(backbone: Backbone, folder: Path, count: int) -> Callable[[], object]:
    """Return a CrossEncoder of the same width and depth over as many tokens, with random weights."""
    with needs("bench"):
        from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=backbone.hidden_size,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=12,
        intermediate_size=4 * backbone.hidden_size,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_backbone("minilm").tokenizer.name_or_path).save_pretrained(folder)
    model = CrossEncoder(str(folder), max_length=512)
    user = " ".join(["film"] * (EVENTS * TOKENS - 1))  # with [CLS] and two [SEP], as many tokens as the other arms
    pairs = [(user, " ".join(["film"] * (TOKENS - 2)))] * count
    return partial(model.predict, pairs, show_progress_bar=False)


def gpt2_small() -> CausalBackbone:
    """Return GPT-2-small's shape with random weights; its words are MiniLM's."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone("minilm").tokenizer.name_or_path)
    return CausalBackbone(GPT2LMHeadModel(GPT2Config()).eval(), tokenizer, "gpt2-small")


def segments(rng: np.random.Generator, count: int, tokens: int) -> list[list[int]]:
    """Return random segments, all different."""
    drawn: list[list[int]] = rng.integers(1000, 20_000, (count, tokens)).tolist()
    return drawn


def tree(events: Sequence[Sequence[int]], branches: Sequence[Sequence[Sequence[int]]]) -> TokenizedLayout:
    """Return a trunk of events, each a block, and branches of segments that see all of them."""
    rows = [(token, 0, number, 0, number) for number, event in enumerate(events) for token in event]
    rows = [(token, place, *rest) for place, (token, _, *rest) in enumerate(rows)]
    trunk, segment = len(rows), len(events)
    for number, branch in enumerate(branches, start=1):
        position = trunk
        for ids in branch:
            rows += [(token, position + n, max(0, len(events) - 1), number, segment) for n, token in enumerate(ids)]
            position, segment = position + len(ids), segment + 1
    ids, positions, blocks, owners, numbers = np.array(rows, dtype=np.int32).T
    return TokenizedLayout(ids=ids, positions=positions, blocks=blocks, branches=owners, segments=numbers)


# ---- figures


def report(bench: Bench, name: str, found: Runs) -> None:
    """Write milliseconds, CPU-milliseconds, and how many times faster late interaction is."""
    shown = Table("arm", "ms", "CPU-ms", "runs", box=None, title=name, title_justify="left")
    for arm, runs in found.items():
        wall, cpu = (1000 * float(np.median([each[kind] for each in runs])) for kind in (0, 1))
        bench.figures |= {f"{name}_{arm}_ms": wall, f"{name}_{arm}_cpu_ms": cpu}
        shown.add_row(arm, f"{wall:.0f}", f"{cpu:.0f}", str(len(runs)))
    for arm in (f"late{JOINT}", "late2", f"pooled{JOINT}"):
        for other in ("full", "cross_encoder", "kv_prefix"):
            for kind, suffix in ((1, ""), (0, "_wall")):
                together = zip(found[other], found[arm], strict=False)
                ratios = [slow[kind] / fast[kind] for slow, fast in together]
                bench.figures[f"{name}_{arm}_over_{other}{suffix}"] = float(np.median(ratios))
    console.print(shown)
