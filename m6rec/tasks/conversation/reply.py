"""The reply to a dialogue: the retriever brings items, the backbone writes the words around their titles.

Knows no loss, no screen and no state: a dialogue comes whole with every request.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.data.dialogues import Turn
from m6rec.decoding import DecodingConfig, Opening, write
from m6rec.decoding.lines import Line
from m6rec.decoding.trie import NamesInMarks, Trie, split
from m6rec.decoding.write import advance
from m6rec.errors import RunError
from m6rec.tasks.conversation.task import Conversation, confidence
from m6rec.text.dialogue import defused

_CLINGS = frozenset(".,;:!?)'")


@dataclass(frozen=True)
class Recommended:
    """An item that a reply names.

    Args:
        place: position in the catalogue.
        probability: that the retriever gives it.
    """

    place: int
    probability: float


@dataclass(frozen=True)
class Said:
    """A reply.

    Args:
        text: the words, titles spelled as the catalogue spells them.
        items: those that it names, in order; none where it asks back.
        confidence: how much of the probability the retriever's first ten items hold.
    """

    text: str
    items: tuple[Recommended, ...]
    confidence: float


@dataclass(frozen=True)
class Plan:
    """What is to be said.

    Args:
        opening: the dialogue, open where the system goes on, and what may be written.
        brought: items whose titles may be written.
        confidence: of the retriever.
    """

    opening: Opening
    brought: tuple[Recommended, ...]
    confidence: float


class Replier:
    """Says what comes next in dialogues.

    Args:
        task: trained.
        backbone: tuned.
        decoding: how words are chosen; default: the task's.

    Raises:
        RunError: the run has learnt to recommend only, not to talk.
    """

    def __init__(self, task: Conversation, backbone: Backbone, decoding: DecodingConfig | None = None) -> None:
        if not task.config.reply:
            raise RunError("this run has learnt to recommend, not to talk; train one with task.reply=true")
        self.task, self.backbone, self.decoding = task, backbone, decoding or task.config.decoding

    def reply(self, dialogues: Sequence[Sequence[Turn]]) -> list[Said]:
        """Return the reply to each dialogue; it depends on nothing else in the batch."""
        plans = self.plan(dialogues)
        found = write(self.backbone, self.task.tokenizer, [plan.opening for plan in plans], self.decoding)
        return [self._said(plan, written.ids)[0] for plan, written in zip(plans, found, strict=True)]

    def stream(self, turns: Sequence[Turn]) -> Iterator[str | Said]:
        """Yield the reply to a dialogue in pieces, a title in one; and at the end the reply whole."""
        (plan,) = self.plan([turns])
        decoding = replace(self.decoding, strategy="sample" if self.decoding.strategy == "sample" else "greedy")
        line, told = Line(plan.opening), ""
        for _ in advance(self.backbone, self.task.tokenizer, [line], decoding):
            said, is_open = self._said(plan, line.ids)
            # The tokens of a word are not its letters: a word is sure once the next one has begun.
            sure = said.text if is_open else said.text.rpartition(" ")[0]
            if len(sure) > len(told) and sure.startswith(told):
                yield sure[len(told) :]
                told = sure
        said, _ = self._said(plan, line.ids)
        if len(said.text) > len(told):
            yield said.text[len(told) :]
        yield said

    def plan(self, dialogues: Sequence[Sequence[Turn]]) -> list[Plan]:
        """Settle for each dialogue whether to recommend or to ask back, and what may be named."""
        scores = self.task.log_probabilities(self.backbone, dialogues, repeat=False)
        sure = confidence(scores)
        return [self._plan(*each) for each in zip(dialogues, scores, sure.tolist(), strict=True)]

    def _plan(self, turns: Sequence[Turn], scores: Tensor, sure: float) -> Plan:
        words, room = self.task.words, self.decoding.max_new_tokens
        brought, names = self._brought(scores)
        asked = unanswered(turns)
        sure_enough = sure >= float(self.task.threshold) or len(asked) >= self.task.config.most_questions
        # Whoever has said nothing has given no evidence, whatever sells best.
        recommends = bool(brought) and sure_enough and any(turn.text.strip() for turn in turns)
        ends = frozenset({self.task.tokenizer.control_ids["[EOS]"]})
        trie = Trie(names if recommends else [])
        constraint = NamesInMarks(
            trie,
            [float(scores[item.place]) for item in brought] if recommends else [],
            words.mark,
            ends,
            room,
            most=self.task.config.most_items,
            language=self.task.config.language,
            phrases=self._phrases(trie, room, asked) if self.task.config.words == "heard" else None,
        )
        opening = Opening(words.opening(turns, recommends, room), ends, constraint)
        return Plan(opening, tuple(brought) if recommends else (), sure)

    def _phrases(self, names: Trie, room: int, asked: Sequence[str]) -> Trie | None:
        """Return what may be said around names, or asked where there are none; ``None`` = no question was heard."""
        heard, mark = self.task.heard, self.task.words.mark
        most = min(self.task.config.most_items, len(names.root.names))
        if not most:
            asks, said = (self._tokens(texts) for texts in (heard.asks, asked))
            asks = [ask for ask in asks if 0 < len(ask) < room and mark not in ask]
            left = [ask for ask in asks if ask not in said] or asks
            return Trie(left) if left else None
        # Names alone can always be said.
        phrases = [[mark]]
        for offer in heard.offers:
            first, *rest = self._tokens(offer)
            phrase = [*first, *(token for part in rest for token in [mark, *part])]
            longest = len(phrase) + len(rest) * (names.longest + 1)
            if phrase.count(mark) == len(rest) <= most and longest < room:
                phrases.append(phrase)
        return Trie(phrases)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.task.tokenizer.texts([defused(text, ()) for text in texts])

    def _brought(self, scores: Tensor) -> tuple[list[Recommended], list[list[int]]]:
        """Return the best items that have a title which fits into a reply, with its tokens."""
        best = scores.topk(min(self.task.config.brought, len(scores)))
        names = [defused(self.task.words.names[place], ()) for place in best.indices.tolist()]
        titles = self.task.tokenizer.texts(names)
        found = [
            (Recommended(place, float(torch.tensor(score).exp())), title)
            for place, score, title in zip(best.indices.tolist(), best.values.tolist(), titles, strict=True)
            if 0 < len(title) <= self.decoding.max_new_tokens // 2 and score > -float("inf")
        ]
        return [item for item, _ in found], [title for _, title in found]

    def _said(self, plan: Plan, ids: Sequence[int]) -> tuple[Said, bool]:
        """Return what some tokens say so far, and whether they end inside a title (which is left out)."""
        pieces = split(ids, self.task.words.mark)
        is_open = len(pieces) % 2 == 0
        constraint, texts, named = plan.opening.constraint, list[str](), list[Recommended]()
        assert isinstance(constraint, NamesInMarks)
        for number, piece in enumerate(pieces[:-1] if is_open else pieces):
            if number % 2 == 0:
                texts.append(self.task.tokenizer.words(piece).strip())
            elif (node := constraint.trie.find(piece)) is not None and node.ends is not None:
                named.append(plan.brought[node.ends])
                texts.append(self.task.words.names[named[-1].place])
        return Said(joined(texts), tuple(named), plan.confidence), is_open


def unanswered(turns: Sequence[Turn]) -> list[str]:
    """Return what the system has said since it last recommended.

    >>> unanswered([Turn("SYSTEM", "How about It?", (7,)), Turn("USER", "No."), Turn("SYSTEM", "Something funny?")])
    ['Something funny?']
    """
    texts = list[str]()
    for turn in turns:
        if turn.speaker == "SYSTEM":
            texts = [] if turn.items else [*texts, turn.text]
    return texts


def joined(texts: Sequence[str]) -> str:
    """Return pieces as one text, a space between two unless the later one clings to the former.

    >>> joined(["how about", "The Shining", ", or", "It", "?"])
    'how about The Shining, or It?'
    """
    whole = ""
    for text in texts:
        if text:
            whole += text if not whole or text[0] in _CLINGS else f" {text}"
    return whole
