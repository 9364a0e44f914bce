"""How the sample world's users choose: the true probability of every item at every moment.

A choice is made in this order: go on from one of the last three items (next season, the accessory of a tool, the tool
seen in a film); buy again what is used up; look around anywhere; else browse the shelf that the visit is about, by
popularity, novelty and taste. The simulation draws from these weights and the oracle adds them up, so both are the
same by construction. Knows no clock of its own and draws nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.data.sources.world_catalogue import Catalogue
from m6rec.data.sources.world_frame import DAY, EXTRA, SERIES, SHOP, SINGLE, SUPPLY, TOOL, VIDEO, shares
from m6rec.data.sources.world_population import NUM_INTERESTS, SEARCH_SHARE, Population
from m6rec.data.sources.world_words import words

EXPLORE_SHARE = 0.06
REFILL_SHARE = 0.6
LAG_SHARES = (1.0, 0.5, 0.25)
"""How much of an item's pull is left one, two and three choices later."""
_PULL = {"sequel": 0.45, "tool": 0.3, "film": 0.12}
_FOLLOWERS = 6
_SEARCH_BONUS = 2.5
_SEQUEL_BONUS, _SEQUEL_BARRIER = 1.5, -3.0
_NOVELTY, _NOVELTY_DAYS = 2.2, 75.0
_NEAR_PENALTY = -0.7


@dataclass
class State:
    """What a block of ``B`` users has done so far.

    Args:
        seen: ``[B, N + 1]`` bool; column ``N`` stands for no item and is always seen.
        last: ``[B, 3]`` the last items, newest first; ``N`` where there is none.
        grip: ``[B, 3]`` how strongly each of them pulls on.
        family: ``[B]`` the supply in use, or -1.
        due: ``[B]`` Unix seconds when it runs out.
    """

    seen: NDArray[np.bool_]
    last: NDArray[np.int64]
    grip: NDArray[np.float64]
    family: NDArray[np.int64]
    due: NDArray[np.int64]

    @classmethod
    def fresh(cls, num_users: int, num_items: int) -> "State":
        """Return the state of users who have done nothing."""
        seen = np.zeros((num_users, num_items + 1), dtype=bool)
        seen[:, num_items] = True
        return cls(
            seen=seen,
            last=np.full((num_users, 3), num_items),
            grip=np.zeros((num_users, 3)),
            family=np.full(num_users, -1),
            due=np.zeros(num_users, dtype=np.int64),
        )


class Choice:
    """The true choice probabilities over one catalogue.

    Args:
        items: the catalogue.
    """

    def __init__(self, items: Catalogue) -> None:
        self.items, self.num_items = items, len(items)
        # Row and column N of every table stand for no item.
        self._popularity = np.append(items.log_popularity, 0).astype(np.float32)
        self._release = np.append(items.release, np.iinfo(np.int64).max)
        self._style, self._audience = np.append(items.style, 0), np.append(items.audience, 0)
        self._tier = np.append(items.tier, 0).astype(np.float32)
        self._prequel = np.append(np.where(items.prequel < 0, self.num_items, items.prequel), self.num_items)
        self._known = np.exp(0.5 * items.log_popularity)
        self._shelves, self._shelf_bonus = self._build_shelves()
        self.families, self._supplies = self._build_families()
        self._followers, self._follower_weights, self.pull = self._build_followers()

    # ---- tables -----------------------------------------------------------------------------------------------

    def _padded(self, lists: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        table = np.full((len(lists), max([1, *map(len, lists)])), self.num_items)
        for row, entries in enumerate(lists):
            table[row, : len(entries)] = entries
        return table

    def _build_shelves(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """One shelf a theme and domain (row ``2 * theme + domain``); an item may stand on a second one."""
        items = self.items
        lists = [
            np.flatnonzero((items.domain == domain) & ((items.theme == theme) | (items.second_theme == theme)))
            for theme in range(len(words().themes))
            for domain in (SHOP, VIDEO)
        ]
        table = self._padded(lists)
        theme = np.append(items.theme, -1)[table]
        away = theme != (np.arange(len(lists)) // 2)[:, None]
        return table, np.where(away, _NEAR_PENALTY, 0.0).astype(np.float32)

    def _build_families(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Supplies of one kind (every coffee bean) are a family; -1 for items that are not used up."""
        items = self.items
        family = np.where(items.kind == SUPPLY, 3 * items.theme + items.product, -1)
        return family, self._padded([np.flatnonzero(family == number) for number in range(3 * len(words().themes))])

    def _build_followers(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
        """What each item leads to: its next season, its accessories, or the tools that a film shows."""
        items = self.items
        sequel = np.full(self.num_items, -1)
        sequel[items.prequel[items.prequel >= 0]] = np.flatnonzero(items.prequel >= 0)
        pull = np.select(
            [sequel >= 0, items.kind == TOOL, np.isin(items.kind, (SINGLE, SERIES))],
            [_PULL["sequel"], _PULL["tool"], _PULL["film"]],
        )
        lists, weights = [], np.zeros((self.num_items + 1, _FOLLOWERS), dtype=np.float32)
        group = items.theme * 4 + items.product
        extras = [np.flatnonzero((items.kind == EXTRA) & (group == g)) for g in range(4 * len(words().themes))]
        tools = [np.flatnonzero((items.kind == TOOL) & (items.theme == t)) for t in range(len(words().themes))]
        for item in range(self.num_items):
            if sequel[item] >= 0:
                fitting = sequel[item : item + 1]
            elif items.kind[item] == TOOL:
                fitting = extras[group[item]]
            elif items.domain[item] == VIDEO:
                fitting = tools[items.theme[item]]
            else:
                fitting = np.zeros(0, dtype=np.int64)
            appeal = (
                0.7 * items.log_popularity[fitting]
                + 1.6 * (items.style[fitting] == items.style[item])
                + 0.8 * (items.maker[fitting] == items.maker[item])
            )
            best = np.argsort(-appeal, kind="stable")[:_FOLLOWERS]
            lists.append(fitting[best])
            weights[item, : len(best)] = np.exp(appeal[best])
        return self._padded([*lists, np.zeros(0, dtype=np.int64)]), weights, np.append(pull, 0.0)

    # ---- weights ----------------------------------------------------------------------------------------------

    def _open(
        self, state: State, rows: NDArray[np.int64], times: NDArray[np.int64], items: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return ``[M, C]`` whether each item is out by then and new to the user."""
        return (self._release[items] <= times[:, None]) & ~state.seen[rows[:, None], items]

    def _open_all(self, state: State, rows: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return ``[M, N]``: the same for every item (whole rows are copied far faster than single cells)."""
        return (self._release[:-1] <= times[:, None]) & ~state.seen[rows][:, :-1]

    def _attraction(self, times: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return ``[M, C]`` log weight of popularity and novelty."""
        release = self._release[items]
        days = (times[:, None] - release).astype(np.float32) / DAY
        novelty = np.where(release > 0, _NOVELTY * np.exp(-np.maximum(days, 0.0) / _NOVELTY_DAYS), 0.0)
        return self._popularity[items] + novelty.astype(np.float32)

    def offers(
        self, state: State, rows: NDArray[np.int64], times: NDArray[np.int64]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float32]]]:
        """Return (mass ``[M]``, items ``[M, C]``, weights ``[M, C]``) of each pull of the past, strongest claim first.

        A pull with mass ``p`` takes the choice with probability ``p`` if no earlier one has taken it.
        """
        found = []
        for lag, share in enumerate(LAG_SHARES):
            source = state.last[rows, lag]
            width = self._followers.shape[1]
            items = self._followers[source]
            weights = self._follower_weights[source, :width] * self._open(state, rows, times, items)
            found.append((share * state.grip[rows, lag] * weights.any(axis=1), items, weights))
        family = state.family[rows]
        items = self._supplies[family]
        due = (family >= 0) & (times >= state.due[rows])
        weights = np.exp(self._attraction(times, items)) * self._open(state, rows, times, items)
        found.append((REFILL_SHARE * (due & weights.any(axis=1)), items, weights))
        return found

    def taste(
        self, people: Population, rows: NDArray[np.int64], interest: NDArray[np.int64], items: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return ``[M, C]`` how well items fit a user's taste within one interest (log odds)."""
        index = rows[:, None]
        style = people.style[rows, interest][np.arange(len(rows))[:, None], self._style[items]]
        return style + people.audience[index, self._audience[items]] + 0.6 * people.tier[index] * self._tier[items]

    def browse(
        self,
        people: Population,
        state: State,
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        interest: NDArray[np.int64],
        domain: NDArray[np.int64],
        searched: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the items ``[M, C]`` on the visit's shelf and their weights; ``searched`` is a style or -1."""
        shelf = 2 * people.interests[rows, interest] + domain
        items = self._shelves[shelf]
        prequel = self._prequel[items]
        begun = state.seen[rows[:, None], prequel]
        sequel = np.where(prequel == self.num_items, 0.0, np.where(begun, _SEQUEL_BONUS, _SEQUEL_BARRIER))
        score = (
            self._attraction(times, items)
            + self._shelf_bonus[shelf]
            + self.taste(people, rows, interest, items)
            + sequel.astype(np.float32)
            + np.float32(_SEARCH_BONUS) * (self._style[items] == searched[:, None])
        )
        return items, np.exp(score) * self._open(state, rows, times, items)

    def explore(self, state: State, rows: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return ``[M, N]`` weights of looking around anywhere: popularity and novelty only."""
        return np.exp(self._attraction(times, np.arange(self.num_items)[None])) * self._open_all(state, rows, times)

    def filler(
        self, people: Population, state: State, rows: NDArray[np.int64], times: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return ``[M, N]`` weights of the filler in a strip of suggestions: known things of the user's themes."""
        liked = np.full((len(rows), len(words().themes)), 0.03, dtype=np.float32)
        np.put_along_axis(liked, people.interests[rows], 1.0, axis=1)
        return liked[:, self.items.theme] * self._known * self._open_all(state, rows, times)

    # ---- the sum ----------------------------------------------------------------------------------------------

    def distribution(
        self,
        people: Population,
        state: State,
        rows: NDArray[np.int64],
        step: NDArray[np.int64],
        search_known: NDArray[np.bool_],
        no_search: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Return ``[M, N]`` the true distribution of the next item of ``rows``.

        Inside a visit its interest and domain are known; at its start they are averaged over.

        Args:
            people: who.
            state: what they have done.
            rows: ``[M]`` users.
            step: ``[M]`` which of their events comes next (its time is taken as known).
            search_known: ``[M]`` True where a search of this visit was observed.
            no_search: ``[M]`` True where it is known that there was none.
        """
        times = people.times[rows, step]
        total = np.zeros((len(rows), self.num_items + 1))
        left = np.ones(len(rows))
        line = np.arange(len(rows))[:, None]
        for mass, items, weights in self.offers(state, rows, times):
            total[line, items] += (left * mass)[:, None] * shares(weights)
            left = left * (1 - mass)
        around = left * EXPLORE_SHARE
        for odds, interest, domain, searched in _visits(people, rows, step, search_known, no_search):
            items, weights = self.browse(people, state, rows, times, interest, domain, searched)
            part = left * (1 - EXPLORE_SHARE) * odds
            total[line, items] += part[:, None] * shares(weights)
            around += np.where(weights.any(axis=1), 0.0, part)
        return total[:, : self.num_items] + around[:, None] * shares(self.explore(state, rows, times))


def _visits(
    people: Population,
    rows: NDArray[np.int64],
    step: NDArray[np.int64],
    search_known: NDArray[np.bool_],
    no_search: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (odds, interest, domain, searched style) of everything that the visit at hand may be about."""
    known = ~people.opens[rows, step] | search_known
    yield known.astype(np.float64), people.interest[rows, step], people.domain[rows, step], people.searched[rows, step]
    interest_odds = people.interest_odds(rows, people.times[rows, step])
    searches = np.where(no_search, 0.0, SEARCH_SHARE)
    for number in range(NUM_INTERESTS):
        interest = np.full(len(rows), number)
        styles = np.column_stack([1 - searches, searches[:, None] * people.style_odds(rows, interest)])
        for domain, share in ((SHOP, 1 - people.video_share[rows]), (VIDEO, people.video_share[rows])):
            for style in range(styles.shape[1]):
                odds = np.where(known, 0.0, interest_odds[:, number] * share * styles[:, style])
                if odds.any():
                    yield odds, interest, np.full(len(rows), domain), np.full(len(rows), style - 1)
