"""The sample world's users: where they live, what they care for, when they come, and what each visit is about.

Everything here is settled before a single item is chosen. Knows themes and styles, but no items.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from m6rec.data.sources.world_frame import DAY, END, START, draw, softmax
from m6rec.data.sources.world_words import words

BLOCK = 1024
"""Users are drawn and simulated this many at a time, each block from a seed of its own."""
MEAN_EVENTS = 22
MAX_EVENTS = 110
NUM_INTERESTS = 4
SEARCH_SHARE = 0.35
"""Share of visits that begin with a search."""
_AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
_VISIT_SHARE = 0.36
_YEAR = 365.25 * DAY


@dataclass(frozen=True)
class Population:
    """One block of ``B`` users with up to ``L`` events each; columns beyond a user's length are filler.

    Args:
        first: number of the block's first user.
        lengths: ``[B]`` number of item events.
        place, age: ``[B]`` indices.
        interests: ``[B, K]`` distinct themes, strongest first.
        start_weights, end_weights: ``[B, K]`` log odds of the interests when the user joins and at the world's end.
        style: ``[B, K, S]`` log odds of each style within each interest.
        audience: ``[B, A]`` log odds of each audience, in all interests.
        tier: ``[B]`` favoured price tier, -1 to 1.
        video_share: ``[B]`` share of visits that go to the video site.
        times: ``[B, L]`` Unix seconds, strictly rising.
        opens: ``[B, L]`` True where a visit begins.
        interest, domain: ``[B, L]`` what the visit is about (index into ``interests``) and where it goes.
        searched: ``[B, L]`` the style that was searched for right before, or -1.
        search_times: ``[B, L]`` when; only meaningful where ``searched >= 0``.
    """

    first: int
    lengths: NDArray[np.int64]
    place: NDArray[np.int64]
    age: NDArray[np.int64]
    interests: NDArray[np.int64]
    start_weights: NDArray[np.float64]
    end_weights: NDArray[np.float64]
    style: NDArray[np.float32]
    audience: NDArray[np.float32]
    tier: NDArray[np.float32]
    video_share: NDArray[np.float64]
    times: NDArray[np.int64]
    opens: NDArray[np.bool_]
    interest: NDArray[np.int64]
    domain: NDArray[np.int64]
    searched: NDArray[np.int64]
    search_times: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: NDArray[np.int64]) -> "Population":
        """Return the users ``rows``, in that order and as often as they are named."""
        arrays = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "first"}
        return Population(first=self.first, **arrays)

    def interest_odds(self, rows: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ``[M, K]`` the probability that a visit of ``rows`` at ``times`` is about each interest."""
        return interest_odds(
            self.interests[rows], self.start_weights[rows], self.end_weights[rows], self.place[rows], times[:, None]
        )[:, 0]

    def style_odds(self, rows: NDArray[np.int64], interest: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ``[M, S]`` the probability that a search within ``interest`` names each style."""
        return softmax(self.style[rows, interest].astype(np.float64))


def interest_odds(
    interests: NDArray[np.int64],
    start_weights: NDArray[np.float64],
    end_weights: NDArray[np.float64],
    place: NDArray[np.int64],
    times: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return ``[B, L, K]``: interests drift from the first weights to the last ones, and follow the user's seasons."""
    progress = ((times - START) / (END - START))[..., None]
    drift = start_weights[:, None] * (1 - progress) + end_weights[:, None] * progress
    themes = words().themes
    south = np.array([entry.south for entry in words().places])[place]
    peak = np.array([(entry.peak - 0.5) / 12 for entry in themes])[interests] + 0.5 * south[:, None]
    swing = np.array([entry.swing for entry in themes])[interests]
    phase = ((times - START) / _YEAR)[..., None] - peak[:, None]
    return softmax(drift + swing[:, None] * np.cos(2 * np.pi * phase))


def build_population(first: int, count: int, seed: int) -> Population:
    """Return users ``first`` to ``first + count``; ``first`` is a multiple of ``BLOCK``."""
    rng = np.random.default_rng([seed, 2, first])
    place = rng.integers(len(words().places), size=count)
    interests = _interests(place, rng)
    start_weights = rng.normal(0.0, 0.8, interests.shape) + np.array([1.0, 0.5, 0.0, -1.2])
    end_weights = start_weights + np.array([-1.5, 0.0, 0.3, 2.4]) * rng.random((count, 1)) * 1.5
    style = _styles(rng, count)
    video_share = rng.beta(2.0, 2.5, size=count)
    lengths = np.clip(rng.lognormal(np.log(MEAN_EVENTS) - 0.32, 0.8, count), 3, MAX_EVENTS).astype(np.int64)
    times, opens = _visits(lengths, rng)
    odds = interest_odds(interests, start_weights, end_weights, place, times)
    visit = np.maximum.accumulate(np.where(opens, np.arange(times.shape[1]), 0), axis=1)
    interest = np.take_along_axis(draw(rng, odds.reshape(-1, NUM_INTERESTS)).reshape(times.shape), visit, axis=1)
    domain = np.take_along_axis((rng.random(times.shape) < video_share[:, None]).astype(np.int64), visit, axis=1)
    sought = np.take_along_axis(style, interest[..., None], axis=1).reshape(-1, style.shape[2]).astype(np.float64)
    searches = opens & (rng.random(times.shape) < SEARCH_SHARE)
    return Population(
        first=first,
        lengths=lengths,
        place=place,
        age=rng.integers(len(_AGES), size=count),
        interests=interests,
        start_weights=start_weights,
        end_weights=end_weights,
        style=style,
        audience=_taste(rng, (count, len(words().audiences)), best=2.6, second=1.2, worst=-2.0),
        tier=rng.uniform(-1.2, 1.2, count).astype(np.float32),
        video_share=video_share,
        times=times,
        opens=opens,
        interest=interest,
        domain=domain,
        searched=np.where(searches, draw(rng, softmax(sought)).reshape(times.shape), -1),
        search_times=times - rng.integers(8, 60, times.shape),
    )


def _interests(place: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw distinct themes, those of the user's climate more often (weighted sampling by the Gumbel trick)."""
    themes, places = words().themes, words().places
    at_home = np.array([[theme.climate == spot.climate for theme in themes] for spot in places])
    noise = rng.gumbel(size=(len(place), len(themes)))
    return np.argsort(-(noise + 0.8 * at_home[place]), axis=1)[:, :NUM_INTERESTS]


def _styles(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Draw tastes in style: half of the user (so that one interest tells of another), half of each interest."""
    num_styles = len(words().styles)
    user = _taste(rng, (count, 1, num_styles), best=3.0, second=1.5, worst=-2.0)
    return user + _taste(rng, (count, NUM_INTERESTS, num_styles), best=1.2, second=0.6, worst=-1.0)


def _taste(
    rng: np.random.Generator, shape: tuple[int, ...], best: float, second: float, worst: float
) -> NDArray[np.float32]:
    """Draw log odds with a favourite, a second choice and something disliked; the rest is near indifference."""
    taste = rng.normal(0.0, 0.3, shape)
    order = np.argsort(rng.random(shape), axis=-1)
    for rank, value in enumerate((best, second, worst)):
        where = order[..., rank : rank + 1]
        np.put_along_axis(taste, where, np.take_along_axis(taste, where, axis=-1) + value, axis=-1)
    return taste.astype(np.float32)


def _visits(lengths: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return event times and where visits begin; a third of the users come late, and some leave early."""
    count, longest = len(lengths), int(lengths.max())
    joined = np.where(rng.random(count) < 0.65, 0.35, 0.95) * rng.random(count)
    left = joined + (1 - joined) * rng.uniform(0.4, 1.0, count)
    opens = rng.random((count, longest)) < _VISIT_SHARE
    opens[:, 0] = True
    inside = np.arange(longest) < lengths[:, None]
    # Visits start at sorted uniform times of the user's stay; filler goes to the end.
    starts = np.sort(np.where(opens & inside, rng.random((count, longest)), 2.0), axis=1)
    visit = np.cumsum(opens, axis=1) - 1
    share = np.take_along_axis(starts, visit, axis=1)
    begin = START + (END - START) * (joined[:, None] + (left - joined)[:, None] * np.minimum(share, 1.0))
    pause = np.where(opens, 0, rng.integers(40, 900, (count, longest)))
    since = np.cumsum(pause, axis=1)
    since -= np.take_along_axis(since, np.maximum.accumulate(np.where(opens, np.arange(longest), 0), axis=1), axis=1)
    # Two visits that would overlap are pushed two minutes apart, event by event.
    steps = 120 * np.arange(longest)
    times = np.maximum.accumulate(begin.astype(np.int64) + since - steps, axis=1) + steps
    return times, opens


def user_table(people: Population) -> dict[str, list[str]]:
    """Return the visible columns of the block's users."""
    places = words().places
    months = (people.times[:, 0] - START) // int(_YEAR / 12)
    return {
        "user": user_keys(people.first + np.arange(len(people))),
        "place": [places[index].name for index in people.place.tolist()],
        "age": [_AGES[index] for index in people.age.tolist()],
        "joined": [f"{2023 + month // 12}-{month % 12 + 1:02d}" for month in months.tolist()],
    }


def user_keys(numbers: NDArray[np.int64]) -> list[str]:
    """Return users' keys, e.g. ``u0000012``."""
    return [f"u{number:07d}" for number in numbers.tolist()]
