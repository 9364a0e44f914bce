"""The sample world's log: a block of users goes through its visits, choice by choice, all users at once.

Knows no words.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.data.sources.world_choice import EXPLORE_SHARE, Choice, State
from m6rec.data.sources.world_frame import DAY, SHOP, draw, draw_many
from m6rec.data.sources.world_population import Population

VERBS = ("click", "cart", "purchase", "watch", "search")
CLICK, CART, PURCHASE, WATCH, SEARCH = range(5)
STRIP_SHARE = 0.25
"""Share of choices at which a strip of suggestions was shown."""
CLICKED_SHARE = 0.6
"""Share of the strips that the choice was made from; the others were passed over."""
STRIP_LENGTH = 5


@dataclass(frozen=True)
class Log:
    """What a block of users did: one row a choice, ordered by user and time.

    Args:
        people: the block.
        user: ``[E]`` row in the block.
        step: ``[E]`` number of the choice in the user's life.
        item: ``[E]`` chosen item.
        verb: ``[E]`` how far it went: click, cart or purchase in the shop; click (on the trailer) or watch for videos.
        own: ``[E]`` True where the item belongs to an interest of the user.
        style_fit, audience_fit: ``[E]`` the user's log odds for the item's style and audience.
        rating: ``[E]`` 1 to 5: what the user would say of it.
        family, due: ``[E]`` the supply in use after the choice (or -1), and when it runs out.
        shown_user, shown_step, shown_item, shown_label: ``[P]`` the strips, item by item; label 1 where clicked.
    """

    people: Population
    user: NDArray[np.int64]
    step: NDArray[np.int64]
    item: NDArray[np.int64]
    verb: NDArray[np.int64]
    own: NDArray[np.bool_]
    style_fit: NDArray[np.float32]
    audience_fit: NDArray[np.float32]
    rating: NDArray[np.int64]
    family: NDArray[np.int64]
    due: NDArray[np.int64]
    shown_user: NDArray[np.int64]
    shown_step: NDArray[np.int64]
    shown_item: NDArray[np.int64]
    shown_label: NDArray[np.int64]

    def times(self) -> NDArray[np.int64]:
        """Return ``[E]`` when each choice was made."""
        return self.people.times[self.user, self.step]

    def shown_times(self) -> NDArray[np.int64]:
        """Return ``[P]`` when each strip was shown: a clicked one at its click, another a second before the choice."""
        clicked = np.zeros(self.people.times.shape, dtype=bool)
        chosen = self.shown_label == 1
        clicked[self.shown_user[chosen], self.shown_step[chosen]] = True
        where = self.shown_user, self.shown_step
        return self.people.times[where] - ~clicked[where]


def simulate(choice: Choice, people: Population, seed: int) -> Log:
    """Let every user of a block live; the same for the same seed."""
    rng = np.random.default_rng([seed, 3, people.first])
    state = State.fresh(len(people), choice.num_items)
    rows_of_log: list[tuple[NDArray[np.generic], ...]] = []
    strips: list[tuple[NDArray[np.int64], ...]] = []
    for step in range(int(people.lengths.max())):
        rows = np.flatnonzero(people.lengths > step)
        items = _choose(choice, people, state, rows, step, rng)
        strips.append(_show(choice, people, state, rows, step, items, rng))
        facts = _react(choice, people, rows, items, rng)
        _remember(choice, people, state, rows, step, items, facts[0], rng)
        in_use = state.family[rows], state.due[rows]
        rows_of_log.append((rows, np.full(len(rows), step), items, *facts, *in_use))
    columns = [np.concatenate(parts) for parts in zip(*rows_of_log, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    shown = [np.concatenate(parts) for parts in zip(*strips, strict=True)]
    by_user = np.lexsort((shown[1], shown[0]))
    return Log(people, *(column[order] for column in columns), *(column[by_user] for column in shown))


def recall(choice: Choice, log: Log, rows: NDArray[np.int64], steps: NDArray[np.int64]) -> State:
    """Return the state of users ``rows`` (``[M]``, in the block) before their choices number ``steps`` (``[M]``).

    Row ``m`` of the state answers question ``m``: a user may be asked for twice.
    """
    state = State.fresh(len(rows), choice.num_items)
    starts = np.concatenate([[0], np.cumsum(log.people.lengths)])[rows]
    before = np.repeat(starts - np.cumsum(steps) + steps, steps) + np.arange(steps.sum())
    state.seen[np.repeat(np.arange(len(rows)), steps), log.item[before]] = True
    for lag in range(state.last.shape[1]):
        known = np.flatnonzero(steps > lag)
        event = starts[known] + steps[known] - 1 - lag
        state.last[known, lag] = log.item[event]
        state.grip[known, lag] = _grip(choice, log.item[event], log.verb[event])
    known = np.flatnonzero(steps > 0)
    latest = starts[known] + steps[known] - 1
    state.family[known], state.due[known] = log.family[latest], log.due[latest]
    return state


def _choose(
    choice: Choice, people: Population, state: State, rows: NDArray[np.int64], step: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the next item of each row, by the order that ``world_choice`` gives."""
    times = people.times[rows, step]
    chosen = np.full(len(rows), -1)
    for mass, items, weights in choice.offers(state, rows, times):
        taken = np.flatnonzero((chosen < 0) & (rng.random(len(rows)) < mass))
        chosen[taken] = items[taken, draw(rng, weights[taken])]
    rest = np.flatnonzero((chosen < 0) & (rng.random(len(rows)) >= EXPLORE_SHARE))
    visit = people.interest[rows[rest], step], people.domain[rows[rest], step], people.searched[rows[rest], step]
    items, weights = choice.browse(people, state, rows[rest], times[rest], *visit)
    found = weights.any(axis=1)
    rest, items, weights = rest[found], items[found], weights[found]
    chosen[rest] = items[np.arange(len(rest)), draw(rng, weights)]
    around = np.flatnonzero(chosen < 0)
    chosen[around] = draw(rng, choice.explore(state, rows[around], times[around]))
    return chosen


def _show(
    choice: Choice,
    people: Population,
    state: State,
    rows: NDArray[np.int64],
    step: int,
    items: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], ...]:
    """Return (user, step, item, label) of the strips shown at this step: the choice and filler, or filler alone."""
    at = np.flatnonzero(rng.random(len(rows)) < STRIP_SHARE)
    clicked = rng.random(len(at)) < CLICKED_SHARE
    weights = choice.filler(people, state, rows[at], people.times[rows[at], step])
    strip = draw_many(rng, weights, STRIP_LENGTH)
    strip[clicked, 0] = items[at[clicked]]
    label = np.zeros_like(strip)
    label[clicked, 0] = 1
    # Filler that repeats something to its left is left out; then the strip is shuffled.
    fresh = np.ones(strip.shape, dtype=bool)
    for column in range(1, STRIP_LENGTH):
        fresh[:, column] = (strip[:, :column] != strip[:, column : column + 1]).all(axis=1)
    order = np.argsort(rng.random(strip.shape), axis=1)
    fresh, strip, label = (np.take_along_axis(table, order, axis=1) for table in (fresh, strip, label))
    user = np.repeat(rows[at], fresh.sum(axis=1))
    return user, np.full(len(user), step), strip[fresh], label[fresh]


def _react(
    choice: Choice, people: Population, rows: NDArray[np.int64], items: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.generic], ...]:
    """Return (verb, own, style fit, audience fit, rating): what is liked is bought, watched and praised."""
    catalogue = choice.items
    hits = people.interests[rows] == catalogue.theme[items][:, None]
    own, interest = hits.any(axis=1), hits.argmax(axis=1)
    style_fit = np.where(own, people.style[rows, interest, catalogue.style[items]], -0.4).astype(np.float32)
    audience_fit = people.audience[rows, catalogue.audience[items]]
    fit = style_fit + audience_fit + 0.6 * people.tier[rows] * catalogue.tier[items]
    shop = catalogue.domain[items] == SHOP
    done = rng.random(len(rows)) < 1 / (1 + np.exp(0.4 - 0.6 * fit))
    half = rng.random(len(rows)) < 0.3
    verb = np.where(done, np.where(shop, PURCHASE, WATCH), np.where(shop & half, CART, CLICK))
    rating = np.clip(np.rint(3.0 + 0.7 * fit + 0.6 * rng.standard_normal(len(rows))), 1, 5).astype(np.int64)
    return verb, own, style_fit, audience_fit, rating


def _remember(
    choice: Choice,
    people: Population,
    state: State,
    rows: NDArray[np.int64],
    step: int,
    items: NDArray[np.int64],
    verb: NDArray[np.generic],
    rng: np.random.Generator,
) -> None:
    """Write the choices into the state: what is owned or seen pulls harder than what was only looked at."""
    state.seen[rows, items] = True
    state.last[rows] = np.column_stack([items, state.last[rows, :2]])
    state.grip[rows] = np.column_stack([_grip(choice, items, verb), state.grip[rows, :2]])
    family = choice.families[items]
    used = np.isin(verb, (PURCHASE, WATCH)) & (family >= 0)
    state.family[rows[used]] = family[used]
    state.due[rows[used]] = people.times[rows[used], step] + rng.integers(20, 45, used.sum()) * DAY


def _grip(choice: Choice, items: NDArray[np.int64], verb: NDArray[np.generic]) -> NDArray[np.float64]:
    return choice.pull[items] * np.where(np.isin(verb, (PURCHASE, WATCH)), 1.0, 0.5)
