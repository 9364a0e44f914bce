"""What a rendered prompt is made of: segments, and the tree they stand in.

A layout is one user *trunk* and any number of *branches* (candidates, event positions, blanks). A branch sees the trunk
up to the block it hangs on, and itself; never its siblings. This module knows no template and no tokenizer.
"""

from dataclasses import dataclass
from typing import Literal

# Control tokens, in the order of their trained rows: source begin and end, target begin and end (M6-Rec, section 3).
CONTROL_TOKENS = ("[BOS']", "[EOS']", "[BOS]", "[EOS]")

# Stands for words that are left out and have to be written; in a target region, between the answers to two of them. It
# is the tokenizer's own mask token; one that has none takes [BOS], which says as much: a target begins.
BLANK = "[MASK]"

Role = Literal["control", "context", "profile", "stub", "item", "query", "statistic", "instruction", "answer", "turn"]


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt that is rendered, budgeted, tokenised and cached as one.

    Args:
        name: unique within its layout, e.g. ``"event.3.item"``.
        text: the words; control tokens and blanks stand only in segments of role ``control``.
        role: what the words are; an item segment holds no time, so that all users share it.
        cacheable: whether the same text may come back for another user or request.
        block: position in the trunk's time: a token sees trunk blocks up to its own. All zero = one
            bidirectional source.
        budget_tokens: longest length in tokens; the tail is cut. ``None`` = no limit of its own.
        sacrifice: order in which segments are dropped when the whole is too long: lowest first; ``None`` = never.
    """

    name: str
    text: str
    role: Role
    cacheable: bool = False
    block: int = 0
    budget_tokens: int | None = None
    sacrifice: int | None = None


@dataclass(frozen=True)
class Layout:
    """A prompt as a tree.

    Args:
        trunk: the source region, ``[BOS'] ... [EOS']`` included as control segments.
        branches: target regions, ``[BOS] ... [EOS]`` included; each is a tuple of segments that hang on one block.
        dropped: how many events the budget has pushed out.
    """

    trunk: tuple[Segment, ...]
    branches: tuple[tuple[Segment, ...], ...] = ()
    dropped: int = 0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every segment, the trunk's first."""
        return self.trunk + tuple(segment for branch in self.branches for segment in branch)
