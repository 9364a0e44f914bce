"""Explanations on the sample world and on XRec's book buyers, split by user: overlap, features, and what they rest on.

On the world a text is also held against the score: the item's score must drop more without an event that the text rests
on than without another one of the history.
"""

import gzip
import html
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from benches.harness import Bench, console

from m6rec.api import load
from m6rec.assemble import Experiment
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.store import Dataset
from m6rec.evaluation.texts import TextEvaluation, write_held_out
from m6rec.metrics.generation import overlap

TEXTS = {False: 120, True: 8}
WORLD_WORDS = (
    "backbone.name=foundation",
    "task.max_events=8",
    "training.max_steps=120",
    "training.evaluate_every=120",
)
XREC_WORDS = (
    "tuner.name=full",
    "task.min_value=null",
    "task.grounded=false",
    "task.decoding.max_new_tokens=96",
    "task.decoding.no_repeat_ngram=4",
    "training.max_steps=150",
    "training.evaluate_every=150",
)
# Books are shown by their title; the second setting adds what a language model wrote of user and book.
WORDS = """extends: default
item: ["{{ title }}", "{% if summary %}: {{ summary }}{% endif %}"]
profile: ["{{ taste }}"]
verbs: {none: "bought"}
"""
PROMPT = """budget_tokens: 512
trunk:
  - "[BOS']"
  - profile: {budget_tokens: 96}
  - events: {limit: 8, time: none, blocks: each, item_tokens: 24}
branch:
  - "[EOS']"
  - "[BOS]"
  - words: "now buys"
  - item: {budget_tokens: 96}
  - words: "because"
  - answer: {name: reason, text: "{{ review.reason }}", budget_tokens: 128}
  - "[EOS]"
"""


def run(bench: Bench) -> None:
    values: dict[str, list[float]] = {}
    for seed in range(bench.seeds):
        for part in (world, world_feature_given, xrec_titles, xrec_summaries):
            found = bench.once(f"{part.__name__}-{seed}", lambda part=part, seed=seed: part(bench, seed))
            for name, value in found.items():
                values.setdefault(name, []).append(value)
    bench.average(values)
    bench.protocol = {"texts": TEXTS[bench.quick], "xrec_split": "by user: 80 train, 10 valid, 10 test of a hundred"}


def world(bench: Bench, seed: int) -> dict[str, float]:
    dataset = sample_world(bench)
    experiment = bench.train("explanation", dataset, "world", seed, WORLD_WORDS)
    figures, written = judged(bench, experiment, "world", seed)
    bench.train("retrieval", dataset, "world-retrieval", seed, ["training.num_epochs=8"])
    figures |= faithfulness(written, bench.work / f"world-retrieval-{seed}")
    # The same weights, which may now name what they were not told.
    experiment.task.config = replace(experiment.task.config, grounded=False)
    free = write_held_out(experiment.task, experiment.backbone, "test", TEXTS[bench.quick], seed).means()
    return figures | {f"world_free_{name}": free[name] for name in ("grounded", "feature_match_ratio", "bleu4")}


def world_feature_given(bench: Bench, seed: int) -> dict[str, float]:
    """PETER+'s setting: the model is handed a word of the true review."""
    words = (*WORLD_WORDS, "task.given=feature")
    experiment = bench.train("explanation", sample_world(bench), "world-feature", seed, words)
    return judged(bench, experiment, "world", seed)[0]


def sample_world(bench: Bench) -> Dataset:
    """Return the world that the foundation was pretrained on, in the same split: nothing held out was in its text."""
    config = WorldConfig(users=300, items=300, dialogues=20) if bench.quick else WorldConfig()
    prepare(World(config), bench.work / "world-data", PrepareConfig())
    return Dataset.open(bench.work / "world-data")


def xrec_titles(bench: Bench, seed: int) -> dict[str, float]:
    return xrec(bench, seed, summaries=False)


def xrec_summaries(bench: Bench, seed: int) -> dict[str, float]:
    return xrec(bench, seed, summaries=True)


def xrec(bench: Bench, seed: int, summaries: bool) -> dict[str, float]:
    """Train and judge on books; a small language model is pretrained on the training part's own text."""
    folder, name = bench.folder("xrec-amazon"), "xrec_summaries" if summaries else "xrec_titles"
    words, prompt = bench.work / "books.yaml", bench.work / "explanation.yaml"
    words.write_text(WORDS, encoding="utf-8")
    prompt.write_text(PROMPT, encoding="utf-8")
    datasets = {}
    for shown in {False, summaries}:
        datasets[shown] = bench.work / f"xrec-{shown}"
        source = XRec(XRec.Config(str(folder), shown, rows=200 if bench.quick else 3000))
        prepare(source, datasets[shown], PrepareConfig(split="given"))
    small = ("training.max_steps=200", f"domain={words}", "task.sources=[items,reviews]")
    backbone = bench.pretrain(Dataset.open(datasets[False]), "xrec-lm", seed, small)
    chosen = (*XREC_WORDS, f"backbone.name={backbone}", f"domain={words}", f"task.prompt={prompt}")
    experiment = bench.train("explanation", Dataset.open(datasets[summaries]), name, seed, chosen)
    figures, written = judged(bench, experiment, name, seed)
    return figures | ({} if summaries else published(folder, written))


def judged(bench: Bench, experiment: Experiment, name: str, seed: int) -> tuple[dict[str, float], TextEvaluation]:
    """Return all figures of one run, those of training texts that stand in for its own, and what it wrote."""
    task, most = experiment.task, TEXTS[bench.quick]
    written = write_held_out(task, experiment.backbone, "test", most, seed)
    show(name, written)
    likelihood = task.measure(experiment.backbone, "test", most if bench.quick else None)
    figures = {task.named(figure): value for figure, value in likelihood.items()} | written.means()
    known = [text.whole for text in task.passages("train").texts]
    drawn = np.random.default_rng(seed).integers(len(known), size=len(written.texts))
    copied = overlap(folded([known[number] for number in drawn]), folded(written.references))
    figures |= {f"copied_{figure}": value for figure, value in copied.items()}
    return {f"{name}_{figure}": value for figure, value in figures.items()}, written


def folded(texts: Sequence[str]) -> list[str]:
    return [text.casefold() for text in texts]


def show(name: str, found: TextEvaluation) -> None:
    """Print three texts, chosen by their place: the first, the middle and the last of those that were drawn."""
    for number in (0, len(found.texts) // 2, len(found.texts) - 1):
        request, rests, events = found.requests[number], found.rests[number], len(found.requests[number].user.events)
        lines = (
            f"{name}, text {number} of {len(found.texts)}: {request.item.get('title')}",
            f"  wrote: {found.texts[number]}",
            f"  true:  {found.references[number]}",
            f"  rests on {', '.join(rests.attributes) or 'nothing'}; {len(rests.events)} of {events} events",
        )
        console.print("\n".join(lines), markup=False, highlight=False)


def faithfulness(written: TextEvaluation, retrieval: Path) -> dict[str, float]:
    """Return how much more an item's score drops without an event that its text rests on than without another one.

    The texts know nothing of the scores: a retrieval run gives them, which has never seen a review.
    """
    scorer, cited, others = load(retrieval), [], []
    items = [written.task.catalogue.keys[item] for item in written.passages.moments.items.tolist()]
    for request, rests, item in zip(written.requests, written.rests, items, strict=True):
        bought = {number for number, event in enumerate(request.user.events) if event.get("item")}
        named = bought & set(rests.events)
        if named and bought - named:
            drops = np.array(scorer.score_drops(request.user.events, item))
            cited.append(drops[sorted(named)].mean())
            others.append(drops[sorted(bought - named)].mean())
    if len(cited) < 2:
        return {}
    gain = np.array(cited) - np.array(others)
    return {
        "faithfulness": float(gain.mean()),
        "faithfulness_se": float(gain.std(ddof=1) / np.sqrt(len(gain))),
        "faithfulness_cited_drop": float(np.mean(cited)),
        "faithfulness_random_drop": float(np.mean(others)),
        "faithfulness_wins": float((gain > 0).mean()),
        "faithfulness_texts": float(len(gain)),
    }


@dataclass(frozen=True)
class XRecConfig:
    path: str
    summaries: bool
    rows: int = 3000


class XRec:
    """XRec's Amazon books: who bought what, and why, as a language model put the buyer's review.

    Every event may be known (a user's earlier books), but an explanation belongs to the split of its user.
    """

    Config = XRecConfig
    name, licence, domain = "xrec-amazon", "research only", "default"

    def __init__(self, config: XRecConfig) -> None:
        self.config = config
        self._rows = read_lines(Path(config.path) / "amazon.jsonl.gz")[: config.rows]

    def events(self) -> Iterator[pa.Table]:
        yield pa.table({**self._keys(), "split": ["train"] * len(self._rows)})

    def _keys(self) -> dict[str, list[str]]:
        return {"user": [f"u{row['uid']}" for row in self._rows], "item": [f"i{row['iid']}" for row in self._rows]}

    def items(self) -> Iterator[pa.Table]:
        known = {f"i{row['iid']}": row for row in self._rows}
        columns = {"item": list(known), "title": [html.unescape(row["title"]) for row in known.values()]}
        if self.config.summaries:
            columns["summary"] = [row["item_summary"] for row in known.values()]
        yield pa.table(columns)

    def users(self) -> Iterator[pa.Table]:
        if self.config.summaries:
            known = {f"u{row['uid']}": row["user_summary"] for row in self._rows}
            yield pa.table({"user": list(known), "taste": list(known.values())})

    def reviews(self) -> Iterator[pa.Table]:
        texts = [row["explanation"] for row in self._rows]
        splits = [split_of(row["uid"]) for row in self._rows]
        yield pa.table({**self._keys(), "text": texts, "reason": texts, "split": splits})

    def conversations(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def impressions(self) -> Iterator[pa.Table]:
        return iter(())


def split_of(user: int) -> str:
    """Return a user's split: 80, 10 and 10 of a hundred."""
    place = zlib.crc32(f"xrec {user}".encode()) % 10
    return "test" if place == 0 else "valid" if place == 1 else "train"


def published(folder: Path, written: TextEvaluation) -> dict[str, float]:
    """Return the overlap of XRec's own published texts with the same references.

    XRec is a tuned 7-billion-parameter model that also reads both summaries and a graph of the whole training part.
    """
    theirs = {row["ref"].strip(): row["pred"] for row in read_lines(folder / "amazon.xrec_ref_pred.jsonl.gz")}
    pairs = [(theirs[true.strip()], true) for true in written.references if true.strip() in theirs]
    found = overlap(folded([text for text, _ in pairs]), folded([true for _, true in pairs])) if pairs else {}
    return {f"xrec_published_{name}": value for name, value in found.items()} | {
        "xrec_published_texts": float(len(pairs))
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
