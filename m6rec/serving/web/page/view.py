"""The page's pictures as HTML: cards, reasons, timelines, prompts. Everything that anybody wrote is escaped.

Pure functions of plain values; knows no recommender and no widget.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from m6rec.serving.web.page.prompt import Piece

Item = Mapping[str, Any]


def items(
    found: Sequence[Item], caption: str, before: Sequence[str] = (), details: Mapping[str, str] | None = None
) -> str:
    """Return a list of items as cards with rank, title, and a bar for the score.

    Args:
        found: ``id``, ``title`` and ``score`` of each, best first.
        caption: of the list.
        before: ids in an earlier order; each card says how far it has moved.
        details: id -> a second line.
    """
    if not found:
        return _column(caption, '<div class="empty">Nothing found.</div>')
    scores = [float(item.get("score") or 0.0) for item in found]
    low, high = min(scores), max(scores)
    ranks = {key: place for place, key in enumerate(before)}
    cards = []
    for place, (item, score) in enumerate(zip(found, scores, strict=True)):
        # The last card keeps a stub, so that a bar is never mistaken for a missing one.
        share = 1.0 if high == low else 0.08 + 0.92 * (score - low) / (high - low)
        moved = _moved(ranks[item["id"]] - place) if item["id"] in ranks else ""
        second = escape((details or {}).get(item["id"], item["id"]))
        cards.append(
            f'<li class="card"><span class="rank">{place + 1}</span>'
            f'<div class="what"><div class="title">{escape(str(item["title"]))}</div><div class="second">{second}</div>'
            f'<div class="bar"><i style="width:{share:.1%}"></i></div></div>'
            f'<div class="right"><span class="score">{score:.3g}</span>{moved}</div></li>'
        )
    return _column(caption, f'<ol class="cards">{"".join(cards)}</ol>')


def _column(caption: str, inside: str) -> str:
    return f'<section class="column"><h3>{escape(caption)}</h3>{inside}</section>'


def _moved(by: int) -> str:
    if by == 0:
        return '<span class="moved">–</span>'
    word, sign = ("up", "▲") if by > 0 else ("down", "▼")
    return f'<span class="moved {word}">{sign} {abs(by)}</span>'


def reason(explanation: Mapping[str, Any], events: Sequence[str]) -> str:
    """Return an explanation, with the events of the history that it rests on.

    Args:
        explanation: as the server answers.
        events: the history's lines.
    """
    evidence = explanation.get("evidence") or {}
    drops = list(explanation.get("drops") or ())
    rows = []
    for number, place in enumerate(evidence.get("events") or ()):
        rows.append(f"<li>{escape(events[place])}{_drop(drops[number]) if number < len(drops) else ''}</li>")
    rests = f'<div class="rests">Rests on</div><ul class="evidence">{"".join(rows)}</ul>' if rows else ""
    if not rows:
        rests = '<div class="rests">No event of the history holds what it names.</div>'
    named = "".join(f'<span class="tag">{escape(str(each))}</span>' for each in evidence.get("attributes") or ())
    title = escape(str((explanation.get("item") or {}).get("title", "")))
    return (
        f'<section class="reason"><h3>Why {title}</h3><p>{escape(str(explanation.get("text", "")))}</p>'
        f'<div class="tags">{named}</div>{rests}</section>'
    )


def _drop(drop: float) -> str:
    word = "falls" if drop > 0 else "rises"
    return f'<span class="drop">the score {word} by {abs(drop):.2f} without it</span>'


def timeline(answer: Mapping[str, Any], caption: str = "Where the time went") -> str:
    """Return an answer's trace: a row a stage, waiting and working, one behind the other."""
    stages = [(name, step) for name, step in (answer.get("trace") or {}).items() if "ms" in step]
    total = sum(step["ms"] + step.get("wait_ms", 0.0) for _, step in stages)
    rows, start = [], 0.0
    for name, step in stages:
        wait, ms = step.get("wait_ms", 0.0), step["ms"]
        spans = "".join(
            f'<i class="{kind}" style="left:{_share(begin, total)};width:{_share(length, total)}"></i>'
            for kind, begin, length in (("wait", start, wait), ("work", start + wait, ms))
        )
        noted = _noted(step)
        rows.append(
            f'<div class="stage"><span class="name">{escape(name)}</span><div class="track">{spans}</div>'
            f'<span class="ms">{ms:.0f} ms</span><span class="noted">{noted}</span></div>'
        )
        start += wait + ms
    rung = escape(str(answer.get("rung", "")))
    head = f'<h3>{escape(caption)}<span class="badge rung-{rung}">{_RUNGS.get(rung, rung)}</span></h3>'
    inside = "".join(rows) or '<div class="empty">Answered from the cache: no model ran.</div>'
    return f'<section class="timeline">{head}{inside}<div class="total">{total:.0f} ms in stages</div></section>'


_RUNGS = {"full": "whole service", "cache": "from the cache", "popular": "popular items"}


def _share(part: float, whole: float) -> str:
    return f"{part / whole if whole else 0:.2%}"


def _noted(step: Mapping[str, Any]) -> str:
    if step.get("segments"):
        return f"{step.get('segments_cached', 0)} of {step['segments']} segments from the cache"
    if step.get("candidates"):
        return f"{step['candidates']} candidates"
    return f"batch of {step['batch']}" if step.get("batch", 1) > 1 else ""


def prompt(pieces: Sequence[Piece], caption: str) -> str:
    """Return a prompt as coloured segments: kept ones, new ones, the trunk and the candidate."""
    if not pieces:
        return _column(caption, '<div class="empty">An empty history has no words to read.</div>')
    states = {True: "kept", False: "fresh", None: "plain"}
    marks = "".join(
        f'<span class="piece {states[piece.cached]}{" branch" if piece.branch else ""}">'
        f"{escape(piece.text)}<sub>{piece.tokens}</sub></span>"
        for piece in pieces
    )
    return _column(caption, f'{_legend(pieces)}<div class="prompt">{marks}</div>')


def _legend(pieces: Sequence[Piece]) -> str:
    tokens, kept = sum(piece.tokens for piece in pieces), sum(piece.tokens for piece in pieces if piece.cached)
    marks, told = "", f"{tokens} tokens, all read for every request: this model keeps none"
    if any(piece.cached is not None for piece in pieces):
        marks = '<span class="piece kept">from a cache</span><span class="piece fresh">read now</span>'
        told = f"{tokens} tokens, {kept} of them kept"
    if any(piece.branch for piece in pieces):
        marks += '<span class="piece branch">the candidate</span>'
    return f'<div class="legend">{marks}<b>{told}</b></div>'


def creations(made: Sequence[Mapping[str, Any]]) -> str:
    """Return what was created as cards."""
    cards = []
    for number, each in enumerate(made, start=1):
        blanks = list((each.get("answers") or {}).items())
        first = escape(str(blanks[-1][1] if blanks else each.get("text", "")))
        rest = " · ".join(f"{escape(name)}: {escape(str(words))}" for name, words in blanks[:-1])
        known = '<span class="tag">in the catalogue already</span>' if each.get("duplicate_of") else ""
        cards.append(
            f'<li class="card"><span class="rank">{number}</span><div class="what"><div class="title">{first}</div>'
            f'<div class="second">{rest}</div>{known}</div>'
            f'<div class="right"><span class="score">{float(each.get("log_prob", 0)):.1f} nats</span></div></li>'
        )
    return _column("Made for this history", f'<ol class="cards">{"".join(cards)}</ol>')


def notice(words: str) -> str:
    """Return a calm box that says what did not work."""
    return f'<div class="notice">{escape(words)}</div>'


def header(runs: Sequence[str], version: str, num_items: int) -> str:
    """Return the bar on top."""
    chips = "".join(f'<span class="chip">{escape(run)}</span>' for run in runs)
    return (
        f'<header class="bar-top"><b class="mark">m6rec</b><span class="chips">{chips}</span>'
        f'<span class="facts">{num_items:,} items on offer · version {escape(version[:8])}</span></header>'
    )
