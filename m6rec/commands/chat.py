"""A conversation in the terminal: a line in, a reply out as it is written. Knows no model."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from m6rec.api import Recommender, Reply

PROMPT = "you> "
HELP = "Say what you are looking for. /reset begins anew, /quit ends."


def converse(
    recommender: "Recommender", console: Console, lines: TextIO, decoding: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Talk until ``/quit`` or the end of the lines, and return the turns of the last dialogue.

    Args:
        recommender: with a run that talks.
        console: where replies go.
        lines: what the user says; a terminal is asked with a prompt, a pipe or file is read in silence.
        decoding: how replies are written.

    Raises:
        RunError: no run talks.
    """
    recommender.team.talker()
    asks = lines.isatty()
    if asks:
        console.print(HELP)
    turns: list[dict[str, Any]] = []
    for line in _lines(console, lines, asks):
        if line == "/quit":
            break
        if line == "/reset":
            turns = []
            console.print("(a new dialogue)")
        elif line:
            turns.append({"speaker": "USER", "text": line})
            turns.append(_answer(recommender, console, turns, decoding).turn)
    return turns


def _lines(console: Console, lines: TextIO, asks: bool) -> Iterator[str]:
    while True:
        if asks:
            # The library's own input has a history and an editable line.
            try:
                yield console.input(PROMPT).strip()
            except (EOFError, KeyboardInterrupt):
                return
        else:
            line = lines.readline()
            if not line:
                return
            yield line.strip()


def _answer(
    recommender: "Recommender", console: Console, turns: list[dict[str, Any]], decoding: Mapping[str, Any]
) -> "Reply":
    """Print a reply as it is written, and what it recommends; return it."""
    console.print("m6rec> ", end="", style="bold")
    # Beams cannot be told word by word.
    if decoding.get("strategy") == "beam":
        reply = recommender.chat(turns, **decoding)
        console.print(reply.text, soft_wrap=True)
    else:
        *_, reply = _told(console, recommender.chat_stream(turns, **decoding))
        console.print()
    if reply.items:
        table = Table(box=None, show_header=False, pad_edge=False)
        for item in reply.items:
            table.add_row("  *", item.title, item.id, f"{item.score:.3f}")
        console.print(table)
    return reply


def _told(console: Console, pieces: Iterator[Any]) -> Iterator[Any]:
    for piece in pieces:
        if isinstance(piece, str):
            console.print(piece, end="", soft_wrap=True)
        yield piece
