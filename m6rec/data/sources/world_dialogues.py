"""The sample world's recommendation dialogues: a wish, a question, a suggestion, an answer that has reasons.

Their users are not in the log, so no dialogue tells of a held-out event.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from m6rec.data.sources.world_catalogue import Catalogue
from m6rec.data.sources.world_frame import SHOP, pick
from m6rec.data.sources.world_words import Audience, Style, Theme, words

_SPLITS = (("train", 0.8), ("valid", 0.9), ("test", 1.0))
_HELLOS = ("Hi!", "Hello there.", "Good evening.", "Hi, can you help me?", "Hey.")
_QUESTIONS = ("Are you after something to use or something to watch?", "A thing for it, or a film?", "Shop or video?")
_OFFERS = ("Then I would suggest", "How about", "You may like", "I think you would enjoy", "Have a look at")
_SECOND = ("In that case, try", "Then perhaps", "What about", "Fair enough. Then I would take")
_THANKS = ("Great, thank you!", "Thanks, I will take it.", "Lovely, that is the one.", "Thanks a lot, good idea.")


@dataclass(frozen=True)
class _Guest:
    """Who asks, and for what."""

    theme: Theme
    style: Style
    audience: Audience
    domain: int


def dialogues(items: Catalogue, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``count`` dialogues as ``Source.conversations`` gives them."""
    rng = np.random.default_rng([seed, 6])
    vocabulary = words()
    for number in range(count):
        theme, style, audience = (
            int(rng.integers(len(choices))) for choices in (vocabulary.themes, vocabulary.styles, vocabulary.audiences)
        )
        domain = int(rng.integers(2))
        guest = _Guest(vocabulary.themes[theme], vocabulary.styles[style], vocabulary.audiences[audience], domain)
        fit = (
            4.0 * (items.theme == theme)
            + 3.0 * (items.style == style)
            + 1.5 * (items.audience == audience)
            + 0.2 * items.log_popularity
        )
        spot = rng.random()
        yield {
            "id": f"d{number:06d}",
            "split": next(name for name, end in _SPLITS if spot < end),
            "turns": list(_turns(items, guest, fit, rng)),
        }


def _turns(items: Catalogue, guest: _Guest, fit: np.ndarray, rng: np.random.Generator) -> Iterator[dict[str, Any]]:  # type: ignore[type-arg]
    titles = items.texts["title"]
    here = np.flatnonzero(items.domain == guest.domain)
    ranked = here[np.argsort(-(fit[here] + rng.gumbel(0.0, 0.3, len(here))))]
    best = int(ranked[0])
    told: list[int] = []
    wish = f"{pick(rng, _HELLOS)} {guest.theme.habit}, and I am looking for {guest.style.want}."
    if rng.random() < 0.5:
        there = np.flatnonzero(items.domain != guest.domain)
        told = [int(there[np.argmax(fit[there] + rng.gumbel(0.0, 0.3, len(there)))])]
        wish += f" I really liked {titles[told[0]]}."
    yield _turn(items, "USER", wish, told)
    yield _turn(items, "SYSTEM", pick(rng, _QUESTIONS))
    kind = "Something to use" if guest.domain == SHOP else "Something to watch"
    yield _turn(items, "USER", f"{kind}, please. {_capital(guest.audience.want)}.")
    if rng.random() < 0.55:
        first, objection = _near_miss(items, guest, ranked[1:60], rng)
        yield _turn(items, "SYSTEM", _offer(items, pick(rng, _OFFERS), first), [first])
        yield _turn(items, "USER", objection)
        yield _turn(items, "SYSTEM", _offer(items, pick(rng, _SECOND), best), [best])
    else:
        yield _turn(items, "SYSTEM", _offer(items, pick(rng, _OFFERS), best), [best])
    yield _turn(items, "USER", pick(rng, _THANKS))


def _near_miss(
    items: Catalogue,
    guest: _Guest,
    ranked: np.ndarray,
    rng: np.random.Generator,  # type: ignore[type-arg]
) -> tuple[int, str]:
    """Return an item that is close but wrong, and what the guest says against it."""
    vocabulary = words()
    for item in ranked.tolist():
        style, audience = vocabulary.styles[items.style[item]], vocabulary.audiences[items.audience[item]]
        if style is not guest.style:
            return item, f"Hm, {pick(rng, style.dislike)}. I would rather have {guest.style.want}."
        if audience is not guest.audience:
            return item, f"Nice, but {pick(rng, audience.dislike)}."
    done = "have that one already" if guest.domain == SHOP else "have seen that one"
    return int(ranked[0]), f"I {done}. Something like it?"


def _offer(items: Catalogue, opening: str, item: int) -> str:
    title, maker, description = (items.texts[name][item] for name in ("title", "brand", "description"))
    by = "" if maker in title else f" by {maker}"
    mark = "?" if opening in ("How about", "What about") else "."
    return f"{opening} {title}{by}{mark} {description}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _turn(items: Catalogue, speaker: str, text: str, mentioned: list[int] | None = None) -> dict[str, Any]:
    return {"speaker": speaker, "text": text, "items": [str(items.keys[item]) for item in mentioned or []]}
