"""Dialogues: which item is recommended next, of the whole catalogue? ReDial, and OpenDialKG split anew by dialogue.

Protocol of UniCRS and iEvaLM: one question for each item that a turn of the system recommends, given all that was said
and named before; the whole catalogue is ranked, and what was named before stays in it (one answer in ten). Published on
ReDial with its full training part, which we do not have: UniCRS .050 / .215 / .423 at 1, 10 and 50; GPT-4 zero-shot
.050 at 1 and .201 at 10.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from benches.harness import Bench, console
from numpy.typing import NDArray
from torch import Tensor

from m6rec.assemble import Experiment
from m6rec.data.dialogues import Moment, as_queries, moments, named, read_dialogues
from m6rec.data.histories import Queries
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.readers import read_jsonl
from m6rec.data.sources.base import Source
from m6rec.data.sources.folders import find, read_object
from m6rec.data.sources.opendialkg import OpenDialKG
from m6rec.data.sources.redial import ReDial
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.store import Dataset
from m6rec.evaluation.bootstrap import compare, intervals
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.result import Evaluation
from m6rec.metrics.generation import distinct
from m6rec.tasks.conversation.reply import Replier
from m6rec.tasks.conversation.task import CUTOFFS, Conversation

SOURCES = {"redial": ReDial, "opendialkg": OpenDialKG}
# A baseline is one term of the evidence alone.
BASELINES = {"popularity": "popularity", "bm25": "words", "minilm": "dialogue"}
REPLIES = 64
TARGET = 0.15


def run(bench: Bench) -> None:
    for name, kind in SOURCES.items():
        folder = bench.folder(name)
        source = Resplit(kind(kind.Config(path=str(folder))), 10 if bench.quick else 1)
        out = bench.work / f"conversation-{name}-data"
        prepare(source, out, PrepareConfig(split="given"))
        dataset, pairs = Dataset.open(out), released(folder)
        parts = [
            bench.once(f"conversation-{name}-{seed}", partial(recommend, bench, name, dataset, pairs, seed))
            for seed in range(bench.seeds)
        ]
        bench.average({figure: [part["figures"][figure] for part in parts] for figure in parts[0]["figures"]})
        bench.details[name] = [part["notes"] for part in parts]
        for row in BASELINES:
            bench.ratio(f"{name}_over_{row}", f"{name}_recall@10", f"{name}_{row}_recall@10")
    bench.figures["redial_over_target"] = bench.figures["redial_recall@10"] / TARGET
    talked = bench.once("conversation-world", partial(talk, bench))
    bench.figures |= talked["figures"]
    bench.details["replies"] = talked["replies"]
    bench.protocol = {
        "candidates": "full catalogue",
        "questions": "one for each recommended item of the release's turns",
        "named before": "may be recommended; `new_recall` leaves such questions out",
        "split": "by dialogue; ReDial: validation part trains, test part tests",
    }


def recommend(bench: Bench, name: str, dataset: Dataset, pairs: set[tuple[str, str, str]], seed: int) -> dict[str, Any]:
    """Train the retriever, and rank the test part by it and by each baseline."""
    words = ["domain=films", *(["task.item_tokens=8"] if bench.quick else [])]
    experiment = bench.train("conversation-retrieval", dataset, f"conversation-{name}", seed, words)
    known = asked(dataset, pairs)
    rows = ranked(experiment, known)
    figures = {}
    for row, evaluation in rows.items():
        prefix = f"{name}_" if row == "ours" else f"{name}_{row}_"
        for part, found in (("", evaluation), ("new_", fresh(evaluation, known))):
            figures |= {f"{prefix}{part}recall@{k}": found.means()[f"recall@{k}"] for k in CUTOFFS}
    sure = intervals(rows["ours"])["recall@10"]
    figures |= {f"{name}_recall@10_low": sure.low, f"{name}_recall@10_high": sure.high}
    notes = compared(experiment, rows)
    console.print(f"{name}: recall@10 {sure.mean:.4f} ({sure.low:.4f} to {sure.high:.4f}), {notes}")
    return {"figures": figures, "notes": notes}


def compared(experiment: Experiment, rows: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the learnt weights, and how far we are ahead of each baseline, dialogue by dialogue."""
    task = experiment.task
    assert isinstance(task, Conversation)
    ahead = {row: vars(compare(rows["ours"], rows[row], "recall@10").difference) for row in BASELINES}
    return {"weights": dict(zip(task.evidence.names, task.weights.tolist(), strict=True)), "ahead": ahead}


def ranked(experiment: Experiment, known: Sequence[Moment]) -> dict[str, Evaluation]:
    """Return the evaluation of our ranking and of each baseline's, with dialogues as what a bootstrap draws."""
    task, backbone = experiment.task.eval(), experiment.backbone
    assert isinstance(task, Conversation)
    vectors = task.read(backbone, [moment.turns for moment in known])
    queries, dialogue = as_queries(known, len(task.catalogue)), np.array([moment.number for moment in known])
    rows = {}
    for name, term in {"ours": None, **BASELINES}.items():
        ranking = Ranking(name, task, known, vectors, term)
        found = evaluate(ranking, queries, CUTOFFS, mask_history=False)
        rows[name] = replace(found, users=dialogue[found.users].astype(np.int32))
    return rows


class Ranking:
    """Scores the catalogue at moments of dialogues.

    Args:
        name: row name in reports.
        task: trained.
        known: the moments; a query's user is the number of one.
        vectors: of each.
        term: a single term of the evidence; ``None`` = all of them as they are weighed.
    """

    def __init__(
        self, name: str, task: Conversation, known: Sequence[Moment], vectors: Tensor, term: str | None
    ) -> None:
        self.name, self._task, self._known, self._vectors, self._term = name, task, known, vectors, term

    def score(self, queries: Queries) -> NDArray[np.float32]:
        rows, places = np.unique(queries.users, return_inverse=True)
        questions = [self._task.words.asked(self._known[row].turns) for row in rows]
        terms = self._task.evidence.weigh(questions, self._vectors[rows])
        if self._term is None:
            scores = terms @ self._task.weights.detach()
        else:
            scores = terms[..., self._task.evidence.names.index(self._term)]
        return scores.numpy()[places]


def asked(dataset: Dataset, pairs: set[tuple[str, str, str]]) -> list[Moment]:
    """Return the test part's moments with those items alone that the release counts as recommended."""
    dialogues, keys = read_dialogues(dataset, "test"), dataset.items["key"][:]
    kept = []
    for moment in moments(dialogues):
        known, reply = dialogues[moment.number].key, moment.reply
        items = tuple(item for item in reply.items if (known, reply.text, keys[item]) in pairs)
        if items:
            kept.append(replace(moment, reply=replace(reply, items=items)))
    return kept


def fresh(evaluation: Evaluation, known: Sequence[Moment]) -> Evaluation:
    """Return the questions whose answer was not named before."""
    kept = np.flatnonzero([item not in named(moment.turns) for moment in known for item in moment.reply.items])
    return replace(
        evaluation,
        users=evaluation.users[kept],
        offsets=np.arange(len(kept) + 1, dtype=np.int64),
        targets=evaluation.targets[kept],
        ranks=evaluation.ranks[kept],
        lists=evaluation.lists[kept],
        history_lengths=evaluation.history_lengths[kept],
    )


def released(folder: Path) -> set[tuple[str, str, str]]:
    """Return dialogue, answer and key of every item that the release counts as recommended."""
    keys: dict[str, str] = {}
    for key, info in read_object(find(str(folder), "id2info.json")).items():
        keys.setdefault(info["name"], key)
    found = set()
    for split in ("train", "valid", "test"):
        if path := find(str(folder), f"eval_{split}.jsonl"):
            rows = (row for chunk in read_jsonl(path) for row in chunk.table.to_pylist())
            found |= {(str(row["dialog_id"]), row["resp"], keys[each]) for row in rows for each in row["rec"]}
    return found


def talk(bench: Bench) -> dict[str, Any]:
    """Learn to reply in the sample world, on the embedded foundation; say what is said at some held-out moments."""
    out = bench.work / "conversation-world-data"
    small = WorldConfig(users=150, items=300, dialogues=30) if bench.quick else WorldConfig(users=600)
    prepare(World(small), out, PrepareConfig())
    experiment = bench.train("conversation", Dataset.open(out), "conversation-world", 0)
    task = experiment.task.eval()
    assert isinstance(task, Conversation)
    found = task.measure(experiment.backbone, "test", 8 if bench.quick else None) or {}
    known = list(moments(read_dialogues(experiment.dataset, "test")))[: 4 if bench.quick else REPLIES]
    said = Replier(task, experiment.backbone).reply([moment.turns for moment in known])
    texts = [each.text for each in said]
    alike = [bool(each.items) == moment.recommends for each, moment in zip(said, known, strict=True)]
    figures = {f"world_{name}": value for name, value in found.items()}
    figures |= {f"world_distinct@{n}": distinct(texts, n) for n in (3, 4)}
    figures |= {"world_recommends_as_people": float(np.mean(alike))}
    replies = [
        {"turns": [turn.text for turn in moment.turns], "said": each.text, "people": moment.reply.text}
        for moment, each in zip(known[:10], said[:10], strict=True)
    ]
    return {"figures": figures, "replies": replies}


class Resplit:
    """A source of dialogues under the split of this bench, whole dialogues each.

    ReDial's training part is not at hand: its validation part trains, less one dialogue in eight, which validates; its
    test part stays what it is. Of a source without a split one dialogue in ten validates and one in ten tests.

    Args:
        source: the whole.
        keep_one_in: thins dialogues by this, and items by half of it, for quick runs.
    """

    def __init__(self, source: Source, keep_one_in: int = 1) -> None:
        self._source, self._keep_one_in = source, keep_one_in
        self.config, self.Config = source.config, source.Config
        self.name, self.licence, self.domain = source.name, source.licence, source.domain

    def events(self) -> Iterator[pa.Table]:
        for table in self._source.events():
            rows = [self._moved(row, row["user"]) for row in table.to_pylist() if self._kept(row["user"])]
            if rows:
                yield pa.Table.from_pylist(rows)

    def conversations(self) -> Iterator[dict[str, Any]]:
        for dialogue in self._source.conversations():
            if self._kept(dialogue["id"]):
                yield self._moved(dialogue, dialogue["id"])

    def items(self) -> Iterator[pa.Table]:
        step = max(1, self._keep_one_in // 2)
        for table in self._source.items():
            yield table.take([row for row, key in enumerate(table["item"].to_pylist()) if _number(key) % step == 0])

    def users(self) -> Iterator[pa.Table]:
        return iter(())

    def reviews(self) -> Iterator[pa.Table]:
        return iter(())

    def impressions(self) -> Iterator[pa.Table]:
        return iter(())

    def _kept(self, dialogue: str) -> bool:
        return _number(f"kept {dialogue}") % self._keep_one_in == 0

    def _moved(self, row: Mapping[str, Any], dialogue: str) -> dict[str, Any]:
        match row.get("split"):
            case "valid":
                return {**row, "split": "train" if _number(dialogue) % 8 else "valid"}
            case None:
                return {**row, "split": {0: "test", 1: "valid"}.get(_number(dialogue) % 10, "train")}
        return dict(row)


def _number(key: str) -> int:
    return zlib.crc32(key.encode())
