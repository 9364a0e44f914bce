"""A real log in time order through a segment cache: hits against its size, and what one new event costs.

Every twentieth rating of MovieLens latest-small, oldest first, is a request: the segments of the user's last 24 events,
and of 20 candidates (what was rated, and others drawn by how often they had been rated before). The cache is the real
one, with MiniLM's states in their true sizes; hits are counted over the second half. The hot set is what the first half
asked for most often, pinned up to half of the memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import numpy as np
from benches.harness import Bench, console
from benches.scoring import CANDIDATES, EVENTS, JOINT, TOKENS, segments, tree
from rich.table import Table

from m6rec.backbones.resolve import resolve_backbone
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.store import Dataset
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.late_interaction.cache import CacheConfig, SegmentCache, segment_key
from m6rec.late_interaction.config import LateInteractionConfig
from m6rec.late_interaction.scorer import LateScorer
from m6rec.text.batch import collate
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer

SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
LAST, DRAWN, EVERY = 24, 19, 20
HIDDEN = 384
ROUNDS = 7
Keyed = tuple[bytes, int]
"""Key of a segment, and its length in tokens."""


def run(bench: Bench) -> None:
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    requests = list(requests_of(bench.prepare(source, "log", PrepareConfig(split="temporal"))))
    lengths = dict(chain.from_iterable(requests))
    bytes_of = {key: 4 * HIDDEN * tokens for key, tokens in lengths.items()}
    whole = sum(bytes_of.values())
    bench.figures |= {
        "requests": len(requests),
        "segments_a_request": float(np.mean([len(request) for request in requests])),
        "distinct_segments": len(bytes_of),
        "whole_megabytes": whole / 1e6,
        "bytes_a_segment": whole / len(bytes_of),
    }
    shown = Table("share of the whole", "MB", "LRU", "pinned", box=None, title="hit rate", title_justify="left")
    for share in SHARES[-3:] if bench.quick else SHARES:
        lru, pinned = (replay(requests, int(share * whole), bytes_of, pin) for pin in (False, True))
        bench.figures |= {f"hit_rate_lru_{share:g}": lru, f"hit_rate_pinned_{share:g}": pinned}
        shown.add_row(f"{share:.0%}", f"{share * whole / 1e6:.1f}", f"{lru:.3f}", f"{pinned:.3f}")
    console.print(shown)
    bench.figures |= request_costs(bench.quick)
    bench.protocol = {
        "requests": f"every {EVERY}th rating in time order; last {LAST} events, 1 + {DRAWN} candidates by popularity",
        "counted": "hits over all segments asked for in the second half; float32 states of MiniLM",
        "costs": f"{CANDIDATES} candidates, {EVENTS} events, {JOINT} joint layers; CPU-ms, medians of {ROUNDS}",
    }


# ---- hits


def requests_of(dataset: Dataset) -> Iterator[list[Keyed]]:
    """Yield the segments of each request, in the order of time."""
    history, rng = dataset.histories(), np.random.default_rng(0)
    renderer = Renderer(dataset.manifest.domain)
    tokenizer = TextTokenizer(resolve_backbone("minilm").tokenizer)
    words = tokenizer.texts([renderer.item(record) for record in dataset.item_records()])
    items = {target: [keyed(ids, target) for ids in words] for target in (False, True)}
    stubs = Stubs(dataset, renderer, tokenizer)
    met = np.ones(history.num_items)
    for number, event in enumerate(np.argsort(history.times, kind="stable").tolist()):
        item = int(history.items[event])
        if number % EVERY == 0:
            user = int(np.searchsorted(history.offsets, event, side="right")) - 1
            first = max(int(history.offsets[user]), event - LAST)
            drawn = rng.choice(history.num_items, DRAWN, replace=False, p=met / met.sum())
            events = [items[False][int(place)] for place in history.items[first:event]]
            candidates = [items[True][place] for place in (item, *drawn.tolist())]
            yield [*events, *(stubs.of(row, first) for row in range(first, event)), *candidates]
        met[item] += 1


class Stubs:
    """The time-and-verb segments of events: how much later than the one before.

    Args:
        dataset: the log.
        renderer: its words.
        tokenizer: MiniLM's.
    """

    def __init__(self, dataset: Dataset, renderer: Renderer, tokenizer: TextTokenizer) -> None:
        self.dataset, self.renderer, self.tokenizer = dataset, renderer, tokenizer
        self.history, self._known = dataset.histories(), {}

    def of(self, row: int, first: int) -> Keyed:
        """Return the stub of one event; the first that is shown follows nothing."""
        place = row, row == first
        if place not in self._known:
            event = {"verb": "rate", "time": int(self.history.times[row]), "value": float(self.history.values[row])}
            words, _ = self.renderer.event(event, None, None if row == first else int(self.history.times[row - 1]))
            self._known[place] = keyed(self.tokenizer.text(words), False)
        return self._known[place]


def keyed(ids: Sequence[int], is_target: bool) -> Keyed:
    return segment_key(np.array(ids, dtype=np.int32), is_target), max(1, len(ids))


def replay(requests: Sequence[Sequence[Keyed]], limit: int, bytes_of: dict[bytes, int], pin: bool) -> float:
    """Return the hit rate over the second half of the requests."""
    cache = SegmentCache("replay", CacheConfig(memory_bytes=limit))
    states = {tokens: np.zeros((tokens, HIDDEN), np.float32) for tokens in {n for r in requests for _, n in r}}
    half = len(requests) // 2
    for number, request in enumerate(requests):
        if number == half:
            cache.stats.memory_hits = cache.stats.misses = 0
            if pin:
                cache.pin(hot_set(requests[:half], limit // 2, bytes_of))
        keys = dict(request)
        found = cache.get_many(list(keys))
        cache.put_many({key: states[keys[key]] for key, held in zip(keys, found, strict=True) if held is None})
    return cache.stats.hit_rate


def hot_set(requests: Sequence[Sequence[Keyed]], limit: int, bytes_of: dict[bytes, int]) -> list[bytes]:
    """Return the segments that were asked for most often, as many as fit."""
    counts = Counter(key for request in requests for key, _ in request)
    ordered = [key for key, _ in counts.most_common()]
    return ordered[: int(np.searchsorted(np.cumsum([bytes_of[key] for key in ordered]), limit, side="right"))]


# ---- costs


def request_costs(quick: bool) -> dict[str, float]:
    """Return the CPU-milliseconds of a request that is wholly new, of one new event, and of nothing new."""
    backbone, rng = resolve_backbone("minilm"), np.random.default_rng(0)
    late = LateBackbone(backbone, LateInteractionConfig(layers=backbone.num_layers - JOINT)).eval()
    end = backbone.tokenizer.convert_tokens_to_ids("[EOS]")
    scorer = LateScorer(late)
    spent: dict[str, list[float]] = {"cold": [], "known_trunk": [], "hot": [], "new_event": []}
    for _ in range(2 if quick else ROUNDS):
        events = segments(rng, EVENTS + 1, TOKENS)
        branches = [[ids[:-1], [end]] for ids in segments(rng, CANDIDATES // (10 if quick else 1), TOKENS)]
        known, grown = (collate([tree(part, branches)], 0) for part in (events[:-1], events[1:]))
        spent["cold"].append(cpu_ms(partial(scorer.ends, known)))
        spent["known_trunk"].append(cpu_ms(partial(scorer.ends, known)))
        scorer.forget_trunks()
        spent["hot"].append(cpu_ms(partial(scorer.ends, known)))
        spent["new_event"].append(cpu_ms(partial(scorer.ends, grown)))
    return {f"{name}_cpu_ms": float(np.median(values)) for name, values in spent.items()}


def cpu_ms(job: Callable[[], object]) -> float:
    started = time.process_time()
    job()
    return 1000 * (time.process_time() - started)
