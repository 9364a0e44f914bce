"""Pseudo labels: moments that nobody has labelled, answered by the ranker where it is surest. Knows no loss."""

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from m6rec.tasks.retrieval.windows import Window, window
from m6rec.training.dense_config import PseudoConfig
from m6rec.training.judges import Judge, Ranker
from m6rec.training.lists import Lists
from m6rec.training.mining import Retriever, look
from m6rec.training.moments import Moments

Floats = NDArray[np.float32]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PseudoWindow(Window):
    """A stretch of events with a pseudo-positive at its end.

    Args:
        row: of its list.
    """

    row: int = -1


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labelled windows and their lists (the pseudo-positive first), row by row."""

    windows: list[PseudoWindow]
    lists: Lists


def threshold_for(ranker: Ranker, validation: Lists, share: float) -> tuple[float, float]:
    """Return the probability that the surest ``share`` of validation lists exceed, and how often they are right.

    Args:
        ranker: calibrated.
        validation: lists of held-out moments, the target first.
        share: of the lists.
    """
    if not len(validation):
        return 1.0, 0.0
    sure, right = _best(ranker, validation)
    threshold = float(np.quantile(sure, 1 - share))
    taken = sure >= threshold
    return threshold, float((right == 0)[taken].mean())


def pseudo_label(
    retriever: Retriever,
    judge: Judge,
    ranker: Ranker,
    validation: Lists,
    config: PseudoConfig,
    depth: int,
    seed: int,
) -> PseudoLabels:
    """Retrieve, judge and label unlabelled moments: every user's whole history, users with a single event among them,
    and sub-histories of it.

    What a user has taken at any time is never a pseudo-positive of theirs.

    Args:
        retriever: finds.
        judge: gives the ranker its numbers.
        ranker: calibrated.
        validation: lists of held-out moments, to calibrate what counts as sure.
        config: how many.
        depth: items a list.
        seed: of the sub-histories.

    Source: RocketQA section 3.3 (data augmentation).
    Differs: its unlabelled queries are other people's questions; ours are histories whose continuation is unknown. It
        takes what the ranker gives more than .9; here the probability comes from validation.
    """
    material, rng = retriever.task.material, np.random.default_rng([seed, 17])
    threshold, precision = threshold_for(ranker, validation, config.share)
    keeps = [np.ones(material.train.num_events, dtype=bool)]
    keeps += [rng.random(material.train.num_events) >= config.drop for _ in range(config.crops)]
    rounds, asked_for = [], 0
    for keep in keeps:
        history, segments = material.train.select(keep), material.windows.segments[keep]
        moments = Moments.after(history, np.flatnonzero(np.diff(history.offsets)))
        asked_for += len(moments)
        states = retriever.at(moments, segments)
        lists = look(retriever, judge, moments, states, np.full(len(moments), -1), depth)
        chosen, sure, lists = _label(ranker, lists, threshold)
        asked, labels = moments.take(chosen), lists.ids[:, 0]
        rounds.append((_windows(segments, np.flatnonzero(keep), asked, labels, material.max_events), sure, lists))
    labelled = [item for found, _, _ in rounds for item in found]
    sure = np.concatenate([found for _, found, _ in rounds])
    kept = _capped(labelled, sure, Lists.joined([lists for _, _, lists in rounds]), config.cap)
    logger.info(
        "pseudo labels: %d of %d unlabelled moments (probability of at least %.3f; such bets are right in %.1f%% of "
        "validation), %d after at most %d an item",
        len(labelled), asked_for, threshold, 100 * precision, len(kept.windows), config.cap,
    )  # fmt: skip
    return kept


def _best(ranker: Ranker, lists: Lists) -> tuple[Floats, NDArray[np.int64]]:
    """Return each list's highest probability and its place."""
    probabilities = np.where(lists.ids >= 0, ranker.probabilities(lists.numbers), -1.0)
    places = probabilities.argmax(1)
    return probabilities[np.arange(len(lists)), places].astype(np.float32), places


def _label(ranker: Ranker, lists: Lists, threshold: float) -> tuple[NDArray[np.int64], Floats, Lists]:
    """Return which lists get a label, how sure it is, and those lists with the label moved to the front."""
    sure, places = _best(ranker, lists)
    chosen = np.flatnonzero((sure >= threshold) & (places > 0))
    ids, numbers, rows = lists.ids[chosen].copy(), lists.numbers[chosen].copy(), np.arange(len(chosen))
    ids[:, 0], numbers[:, 0] = ids[rows, places[chosen]], numbers[rows, places[chosen]]
    ids[rows, places[chosen]] = -1
    return chosen, sure[chosen], Lists(lists.events[chosen], ids, numbers, lists.states[chosen])


def _windows(
    segments: NDArray[np.int64],
    events: NDArray[np.int64],
    moments: Moments,
    labels: NDArray[np.int32],
    max_events: int,
) -> list[PseudoWindow]:
    """Return one window a labelled moment; its events are numbered as in the training histories."""
    found = []
    for number, item in enumerate(labels.tolist()):
        start, stop = moments.span(number, max_events)
        read = window(moments.history, segments, int(moments.users[number]), start, stop)
        found.append(
            PseudoWindow(
                user=read.user,
                segments=np.append(read.segments, item),
                verbs=np.append(read.verbs, 0),
                gaps=np.append(read.gaps, 0),
                # The label stands in no log; the record of the event before takes its place, and nothing reads it.
                events=events[np.append(read.events, read.events[-1])],
                first_target=len(read),
            )
        )
    return found


def _capped(windows: list[PseudoWindow], sure: Floats, lists: Lists, cap: int) -> PseudoLabels:
    """Keep the surest ``cap`` labels of each item."""
    kept, counts = [], dict[int, int]()
    for place in np.argsort(-sure, kind="stable").tolist():
        item = int(lists.ids[place, 0])
        counts[item] = counts.get(item, 0) + 1
        if counts[item] <= cap:
            kept.append(place)
    kept.sort()
    order = np.array(kept, dtype=np.int64)
    chosen = Lists(*(getattr(lists, name)[order] for name in ("events", "ids", "numbers", "states")))
    return PseudoLabels([replace(windows[place], row=row) for row, place in enumerate(kept)], chosen)
