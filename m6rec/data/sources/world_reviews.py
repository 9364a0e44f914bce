"""The sample world's reviews: what a user says of a thing follows from its attributes and the user's taste."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from m6rec.data.sources.world_behaviour import PURCHASE, WATCH, Log
from m6rec.data.sources.world_catalogue import Catalogue
from m6rec.data.sources.world_frame import DAY, pick
from m6rec.data.sources.world_population import user_keys
from m6rec.data.sources.world_titles import sentences
from m6rec.data.sources.world_words import words

REVIEW_SHARE = 0.15
"""Share of purchases and watched videos that are reviewed."""
_LIKED, _DISLIKED = 0.6, -0.5
"""From which log odds on a user speaks of a style or an audience."""
_VERDICTS = {
    1: ("A disappointment", "I regret this one"),
    2: ("I would not choose it again", "Not for me in the end"),
    3: ("It is all right", "Neither good nor bad"),
    4: ("I am happy with it", "Good choice"),
    5: ("One of my best finds this year", "I could not be happier with it"),
}
_ELSEWHERE = ("I wanted to try something new", "A friend talked me into it", "I came across it by chance")
_PLUS = ("A plus", "What I like", "Best of all")
_STILL = ("I will say this for it", "At least")
_MINUS = ("One thing", "A minus", "What bothers me")


@dataclass(frozen=True)
class _Opinion:
    """One user's view of one item, as numbers."""

    theme: int
    style: int
    audience: int
    own: bool
    style_fit: float
    audience_fit: float
    price_fit: float
    dear: bool
    finish: str | None
    rating: int


def reviews(log: Log, items: Catalogue, seed: int) -> pa.Table:
    """Return the reviews of one block of users as ``Source.reviews`` gives them."""
    rng = np.random.default_rng([seed, 5, log.people.first])
    done = np.isin(log.verb, (PURCHASE, WATCH))
    rows = np.flatnonzero(done & (rng.random(len(done)) < REVIEW_SHARE))
    told = [_tell(_opinion(log, items, row), rng) for row in rows.tolist()]
    later = rng.integers(DAY, 20 * DAY, len(rows))
    return pa.table(
        {
            "user": pa.array(user_keys(log.people.first + log.user[rows]), pa.string()),
            "item": pa.array(items.keys[log.item[rows]].tolist(), pa.string()),
            "text": pa.array([text for text, _, _ in told], pa.string()),
            "summary": pa.array([summary for _, summary, _ in told], pa.string()),
            "value": pa.array(log.rating[rows].astype(np.float32)),
            "time": pa.array(log.times()[rows] + later),
            "reason": pa.array([reason for _, _, reason in told], pa.string()),
        }
    )


def _opinion(log: Log, items: Catalogue, row: int) -> _Opinion:
    item = log.item[row]
    tier = int(items.tier[item])
    return _Opinion(
        theme=int(items.theme[item]),
        style=int(items.style[item]),
        audience=int(items.audience[item]),
        own=bool(log.own[row]),
        style_fit=float(log.style_fit[row]),
        audience_fit=float(log.audience_fit[row]),
        price_fit=float(log.people.tier[log.user[row]]) * tier,
        dear=tier > 0,
        finish=items.texts["finish"][item],
        rating=int(log.rating[row]),
    )


def _tell(opinion: _Opinion, rng: np.random.Generator) -> tuple[str, str, str]:
    """Return (text, summary, reason); the reason is empty where the user has none."""
    theme, style = words().themes[opinion.theme], words().styles[opinion.style]
    audience = words().audiences[opinion.audience]
    opening = theme.habit if opinion.own else pick(rng, _ELSEWHERE)
    parts, liked, disliked = [opening if rng.random() < 0.6 else ""], [], []
    if opinion.style_fit > _LIKED:
        parts.append(pick(rng, style.like))
        parts.append(f"the {opinion.finish} looks lovely" if opinion.finish and rng.random() < 0.5 else "")
        liked.append(f"{style.name} style")
    elif opinion.style_fit < _DISLIKED and opinion.own:
        parts.append(f"{pick(rng, _MINUS)}: {pick(rng, style.dislike)}")
        disliked.append(f"{style.name} style")
    if opinion.audience_fit > _LIKED:
        parts.append(f"{pick(rng, _PLUS if opinion.rating > 2 else _STILL)}: {pick(rng, audience.like)}")
        liked.append(f"right for {audience.group}")
    elif opinion.audience_fit < _DISLIKED:
        parts.append(f"{pick(rng, _MINUS)}: {pick(rng, audience.dislike)}")
        disliked.append(f"made for {audience.group}")
    if opinion.price_fit < _DISLIKED:
        parts.append("it is rather dear for what it is" if opinion.dear else "you notice that it was cheap")
        disliked.append("price" if opinion.dear else "cheap make")
    verdict = pick(rng, _VERDICTS[opinion.rating])
    where = len(parts) if rng.random() < 0.7 else 0
    parts.insert(where, verdict)
    reasons = (f"{word} {', '.join(found)}" for word, found in (("liked", liked), ("disliked", disliked)) if found)
    return sentences(iter(parts)), verdict, "; ".join(reasons)
