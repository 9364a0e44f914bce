import io

from rich.console import Console

from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.show import show


def shown(tokenizer, max_tokens=None):
    events = [{"verb": "buy", "item": "[bold]soap[/bold]"}, {"verb": "buy", "item": "towel"}]
    layout = Prompt("ranking").layout(
        Renderer("default"), UserText(events=events), [Candidate("[EOS]"), Candidate("ab")]
    )
    console = Console(width=160, file=io.StringIO())
    console.print(show(layout, tokenizer, max_tokens))
    return console.file.getvalue().splitlines()


def row(lines, name):
    return next(line for line in lines if name in line.split())


def test_every_segment_is_shown_as_it_is(bpe):
    lines = shown(bpe)
    assert "[bold]soap[/bold]" in row(lines, "event.1.item")
    assert row(lines, "event.2.item").replace("│", " ").split() == [
        "event.2.item", "item", "2", "trunk", str(len(bpe.text("towel"))), "yes", "towel",
    ]  # fmt: skip
    assert row(lines, "branch.1.item").replace("│", " ").split()[3] == "1"
    assert row(lines, "branch.2.[EOS]").replace("│", " ").split() == [
        "branch.2.[EOS]",
        "control",
        "2",
        "2",
        "1",
        "[EOS]",
    ]
    assert not any("dropped" in line or "cut" in line for line in lines)


def test_what_did_not_fit_is_told(letters):
    lines = shown(letters, max_tokens=10)
    assert "tokens cut" in row(lines, "event.1.item")
    assert row(lines, "event.1.item").replace("│", " ").split()[4] == "0"
    assert any("2 oldest events dropped" in line for line in lines)
    assert any("longest path 10" in line for line in lines)
