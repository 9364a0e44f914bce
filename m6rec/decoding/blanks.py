"""Filling blanks: a prompt with empty answers, each written in turn and read by the next. Knows no prompt file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from m6rec.backbones.base import Backbone
from m6rec.decoding.config import DecodingConfig
from m6rec.decoding.opening import Constraint, Opening, Written
from m6rec.decoding.write import write
from m6rec.text.segments import Layout, Segment
from m6rec.text.tokenize import TextTokenizer


@dataclass(frozen=True)
class Form:
    """A prompt with blanks.

    Args:
        layout: with one branch, in which an answer without text is a blank.
        constraint: what may be written, in every blank.
        draw: number of this draw among those for the same prompt.
    """

    layout: Layout
    constraint: Constraint | None = None
    draw: int = 0

    @property
    def blanks(self) -> list[int]:
        """Places of the blanks in the branch."""
        (branch,) = self.layout.branches
        return [place for place, segment in enumerate(branch) if segment.role == "answer" and not segment.text]


def fill(
    backbone: Backbone,
    text: TextTokenizer,
    forms: Sequence[Form],
    config: DecodingConfig | None = None,
    max_tokens: int | None = None,
) -> list[list[Written]]:
    """Return what was written into the blanks of each form, in their order.

    A blank ends where the words behind it begin, or at ``[EOS]``.

    Args:
        backbone: with a language-model head.
        text: its tokenizer.
        forms: any number of blanks each.
        config: how to write.
        max_tokens: longest prompt with its answer: what is too long loses its oldest events first; ``None`` = nothing
            is cut, and what is too long is an error.

    Raises:
        ConfigError: as :func:`m6rec.decoding.write.write`.
    """
    config = config or DecodingConfig()
    room = None if max_tokens is None else max_tokens - config.max_new_tokens
    answers: list[list[Written]] = [[] for _ in forms]
    while waiting := [row for row, form in enumerate(forms) if len(answers[row]) < len(form.blanks)]:
        begun = [_begun(forms[row], answers[row]) for row in waiting]
        # Draws from one prompt share its tokens, so that it is read once.
        different = dict.fromkeys(begun)
        tokens = dict(zip(different, text.layouts(list(different), room), strict=True))
        openings = [
            Opening(tokens[layout], _ends(forms[row], len(answers[row]), text), forms[row].constraint, forms[row].draw)
            for row, layout in zip(waiting, begun, strict=True)
        ]
        for row, written in zip(waiting, write(backbone, text, openings, config), strict=True):
            answers[row].append(written)
    return answers


def filled(form: Form, answers: Sequence[Written]) -> tuple[Segment, ...]:
    """Return the branch with its first blanks filled."""
    branch = list(form.layout.branches[0])
    for place, written in zip(form.blanks, answers, strict=False):
        branch[place] = replace(branch[place], text=written.text)
    return tuple(branch)


def _begun(form: Form, answers: Sequence[Written]) -> Layout:
    """Return the prompt up to its next blank."""
    branch = filled(form, answers)[: form.blanks[len(answers)]]
    written = tuple(segment for segment in branch if segment.text)
    return Layout(form.layout.trunk, (written,), form.layout.dropped)


def _ends(form: Form, number: int, text: TextTokenizer) -> frozenset[int]:
    """Return what a blank may end with."""
    ends = {text.control_ids["[EOS]"]}
    behind = form.layout.branches[0][form.blanks[number] + 1 :]
    if behind and behind[0].role == "control":
        ends.add(text.control_ids[behind[0].text])
    elif behind and behind[0].text:
        ends.update(text.text(behind[0].text)[:1])
    return frozenset(ends)
