"""Names that may be written, and nothing else: a trie of token ids that opens and closes at a mark.

Between two marks stands one of the given names, each at most once; the words outside are free, or a trie of their own.
Knows no task.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from m6rec.errors import ConfigError

_LEAST = -50.0


@dataclass
class Node:
    """A beginning of names.

    Args:
        children: by the next token.
        names: numbers of the names that go on from here or end here.
        ends: the name that ends here; ``None`` = none does.
    """

    children: dict[int, "Node"] = field(default_factory=dict)
    names: list[int] = field(default_factory=list)
    ends: int | None = None


class Trie:
    """Names by their tokens.

    Args:
        names: token ids of each; the first of two equal ones is kept.

    Raises:
        ConfigError: a name without tokens.
    """

    def __init__(self, names: Sequence[Sequence[int]]) -> None:
        self.root = Node()
        self.longest = max(map(len, names), default=0)
        for number, tokens in enumerate(names):
            if not tokens:
                raise ConfigError(f"name {number}: got no tokens, expected words that the tokenizer knows")
            self._add(number, tokens)

    def _add(self, number: int, tokens: Sequence[int]) -> None:
        path = [self.root]
        for token in tokens:
            path.append(path[-1].children.setdefault(token, Node()))
        if path[-1].ends is None:
            path[-1].ends = number
            for node in path:
                node.names.append(number)

    def find(self, tokens: Iterable[int]) -> Node | None:
        """Return where a beginning leads to; ``None`` where no name begins so."""
        node: Node | None = self.root
        for token in tokens:
            node = node.children.get(token) if node is not None else None
        return node


class NamesInMarks:
    """A constraint: between two marks stands a name, and only there.

    Among the names the model's own likelihood and their scores decide together, so that a name that is easy to spell
    does not win by that alone.

    Args:
        trie: the names.
        log_scores: of each name, natural logarithms; the better, the likelier it is written.
        mark: the token before and behind a name.
        ends: tokens that end the answer.
        max_tokens: longest answer; a name is begun while it still fits.
        least: how many names the answer holds at least (as far as there are as many).
        most: how many at most; 0 = none, and no mark.
        language: weight of the model's own log-likelihood against the scores.
        phrases: what may be said outside, a mark where a name stands; ``None`` = anything, ``least`` and ``most``
            names in it.

    Raises:
        ConfigError: the longest name does not fit into an answer.

    Source: constrained decoding over a trie as in GENRE (De Cao et al., 2010.00904), section 3.2.
    """

    def __init__(
        self,
        trie: Trie,
        log_scores: Sequence[float],
        mark: int,
        ends: frozenset[int],
        max_tokens: int,
        least: int = 1,
        most: int = 3,
        language: float = 0.2,
        phrases: Trie | None = None,
    ) -> None:
        self.trie, self.mark, self.ends, self.max_tokens = trie, mark, ends, max_tokens
        self.phrases = phrases
        self.log_scores, self.language = torch.tensor(log_scores, dtype=torch.float32), language
        count = len(trie.root.names)
        self.least, self.most = min(least, count, most), min(most, count)
        self._room = trie.longest + 2  # with its two marks
        if self.least and max_tokens < self._room:
            raise ConfigError(f"got max_new_tokens={max_tokens}, expected {self._room} or more: a name must fit")

    def __call__(
        self, written: Int[Tensor, " written"], logits: Float[Tensor, " vocabulary"]
    ) -> Float[Tensor, " vocabulary"]:
        """Return the logits of what may come next."""
        ids = written.tolist()
        done, open_name = self.read(ids)
        if open_name is not None:
            return self._inside(open_name, done, logits)
        if self.phrases is not None:
            return self._along(self.phrases, ids, logits)
        left = self.max_tokens - len(ids)
        missing = self.least - len(done)
        allowed = logits.clone()
        if missing > 0:
            allowed[sorted(self.ends)] = -torch.inf
        # The last chance to write what is missing.
        if missing > 0 and left < missing * self._room + 1:
            only = torch.full_like(logits, -torch.inf)
            only[self.mark] = 0
            return only
        if len(done) >= self.most or left < self._room:
            allowed[self.mark] = -torch.inf
        return allowed

    def _along(
        self, phrases: Trie, ids: Sequence[int], logits: Float[Tensor, " vocabulary"]
    ) -> Float[Tensor, " vocabulary"]:
        """Go on with a phrase."""
        pieces = split(ids, self.mark)
        # Of each name its place alone belongs to the phrase.
        said = [token for number, piece in enumerate(pieces[0::2]) for token in [self.mark] * bool(number) + piece]
        node, allowed = phrases.find(said), torch.full_like(logits, -torch.inf)
        if node is not None:
            ways = sorted({*node.children, *(self.ends if node.ends is not None else ())})
            allowed[ways] = logits.log_softmax(0)[ways].clamp(min=_LEAST)
        return allowed

    def read(self, ids: Sequence[int]) -> tuple[list[int], list[int] | None]:
        """Return the names that an answer holds so far, and the tokens of one that is still open."""
        done: list[int] = []
        pieces = split(ids, self.mark)
        for piece in pieces[1:-1:2]:
            node = self.trie.find(piece)
            if node is not None and node.ends is not None:
                done.append(node.ends)
        return done, pieces[-1] if len(pieces) % 2 == 0 else None

    def _inside(
        self, begun: Sequence[int], done: Sequence[int], logits: Float[Tensor, " vocabulary"]
    ) -> Float[Tensor, " vocabulary"]:
        """Go on with a name: each way gets the share of the scores that lies behind it."""
        allowed = torch.full_like(logits, -torch.inf)
        node = self.trie.find(begun)
        if node is None:
            return allowed
        # A piece that the rules forbid in words (a repetition, an unknown sign) may still be part of a name.
        own = logits.log_softmax(0).clamp(min=_LEAST) * self.language
        ways = {token: self._mass(child.names, done) for token, child in node.children.items()}
        if node.ends is not None:
            ways[self.mark] = self._mass([node.ends], done)
        for token, mass in ways.items():
            if mass > -math.inf:
                allowed[token] = own[token] + mass
        return allowed

    def _mass(self, names: Sequence[int], done: Sequence[int]) -> float:
        left = [name for name in names if name not in done]
        return float(self.log_scores[left].logsumexp(0)) if left else -math.inf


def split(ids: Sequence[int], mark: int) -> list[list[int]]:
    """Cut tokens at every mark: words, name, words, name, ..., words.

    >>> split([5, 9, 7, 9, 6], 9)
    [[5], [7], [6]]
    """
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token == mark:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces
