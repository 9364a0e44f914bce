"""Beam search: of all beginnings keep the likeliest few, and go on from each. Knows no task."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.decoding.config import DecodingConfig
from m6rec.decoding.lines import Line
from m6rec.decoding.opening import Opening
from m6rec.decoding.reading import begin, go_on
from m6rec.decoding.rules import Rules
from m6rec.text.tokenize import TextTokenizer


@dataclass
class Beams:
    """The search behind one prompt.

    Args:
        opening: the prompt.
        running: unfinished beginnings, the best first.
        scores: of each of them: the sum of its tokens' log-probabilities under the rules.
        finished: finished texts with their scores, lengths taken into account.
    """

    opening: Opening
    running: list[Line]
    scores: list[float] = field(default_factory=lambda: [0.0])
    finished: list[tuple[float, Line]] = field(default_factory=list)

    def step(
        self,
        logits: Float[Tensor, "running vocabulary"],
        allowed: Float[Tensor, "running vocabulary"],
        config: DecodingConfig,
        text: TextTokenizer,
    ) -> list[int]:
        """Take one token more on the best beginnings; return which of the old ones the new ones go on from."""
        totals = allowed + torch.tensor(self.scores, device=allowed.device)[:, None]
        # Each beginning has few ends, so that twice as many candidates hold enough that go on.
        width = config.num_beams * (1 + len(self.opening.ends))
        best = totals.flatten().topk(min(width, totals.numel()))
        parents: list[int] = []
        lines: list[Line] = []
        scores: list[float] = []
        for rank, (score, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            parent, token = divmod(place, totals.shape[1])
            if score == -torch.inf or len(lines) == config.num_beams:
                break
            old = self.running[parent]
            line = Line(self.opening, [*old.ids], old.log_prob)
            line.add(token, float(logits[parent, token]), config, text)
            if line.ended is None:
                parents, lines, scores = [*parents, parent], [*lines, line], [*scores, score]
            elif rank < config.num_beams or line.ended == "limit":
                length = len(line.ids) + (line.ended == "end")
                self.finished.append((score / max(1, length) ** config.length_penalty, line))
        self.running, self.scores = lines, scores
        if len(self.finished) >= config.num_beams:
            self.running, self.scores, parents = [], [], []
        return parents

    @property
    def best(self) -> Line:
        """The best finished text."""
        return max(self.finished, key=lambda pair: pair[0])[1]


def search(backbone: Backbone, text: TextTokenizer, openings: Sequence[Opening], config: DecodingConfig) -> list[Line]:
    """Return the best finished line of each prompt.

    A prompt's search ends as soon as ``num_beams`` texts are finished, or all beginnings are as long as allowed.

    Differs: transformers' default goes on while a longer text might still score higher; ours is its
        ``early_stopping=True``, by which one beam is the greedy search.
    """
    rules, everything = Rules(config, text.special_ids), [Beams(opening, [Line(opening)]) for opening in openings]
    logits, past = begin(backbone, openings, text.pad_id)
    alive = everything
    while alive:
        rows = [(beams, line) for beams in alive for line in beams.running]
        written = torch.tensor([line.ids for _, line in rows], dtype=torch.long, device=logits.device)
        own = logits.log_softmax(1)
        allowed = rules.allow([beams.opening for beams, _ in rows], written, own)
        parents, start = [], 0
        for beams in alive:
            stop = start + len(beams.running)
            parents += [start + row for row in beams.step(own[start:stop], allowed[start:stop], config, text)]
            start = stop
        alive = [beams for beams in alive if beams.running]
        if alive:
            tokens = [line.ids[-1] for beams in alive for line in beams.running]
            taken = past.take(torch.tensor(parents, device=logits.device))
            logits, past = go_on(backbone, taken, torch.tensor(tokens, device=logits.device))
    return [beams.best for beams in everything]
