"""What the model sees, for a person to read: a layout segment by segment. It prints nothing itself."""

from collections import Counter

from rich.table import Table
from rich.text import Text

from m6rec.text.segments import Layout
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout


def show(layout: Layout, tokenizer: TextTokenizer, max_tokens: int | None = None) -> Table:
    """Return a table with one row a segment: name, role, block, branch, tokens, cacheable, and the text that is left.

    Args:
        layout: what to show.
        tokenizer: counts the tokens and cuts them, as it would for the model.
        max_tokens: as in ``TextTokenizer.layout``.
    """
    tokens = tokenizer.layout(layout, max_tokens)
    counts = Counter(tokens.segments.tolist())
    table = Table("segment", "role", "block", "branch", "tokens", "cached", "text", caption=_caption(tokens))
    owners = [0] * len(layout.trunk) + [n for n, branch in enumerate(layout.branches, start=1) for _ in branch]
    previous = 0
    for number, (segment, owner) in enumerate(zip(layout.segments, owners, strict=True)):
        if owner != previous:
            table.add_section()
        previous = owner
        # Text, not markup: a title may hold "[bold]" or "[EOS]".
        table.add_row(
            Text(segment.name),
            segment.role,
            str(segment.block),
            str(owner or "trunk"),
            str(counts[number]),
            "yes" if segment.cacheable else "",
            _left(segment.text, counts[number], tokenizer, segment.role == "control"),
        )
    return table


def _left(text: str, count: int, tokenizer: TextTokenizer, control: bool) -> Text:
    """Return the text, or what the budget has left of it and how much it has cut."""
    ids = [] if control else tokenizer.text(text)
    if control or count == len(ids):
        return Text(text)
    kept = tokenizer.tokenizer.decode(ids[:count]).strip()
    return Text.assemble(kept, " " if kept else "", (f"({len(ids) - count} tokens cut)", "dim"))


def _caption(tokens: TokenizedLayout) -> str:
    longest = int(tokens.positions.max()) + 1 if len(tokens) else 0
    parts = [f"{len(tokens)} tokens", f"longest path {longest}"]
    return ", ".join([*parts, *([f"{tokens.dropped} oldest events dropped"] if tokens.dropped else [])])
