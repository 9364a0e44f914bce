"""Likelihoods of answers: read behind a shared trunk or all at once, one by one or together, they are the same."""

import numpy as np
import pytest
import torch

from m6rec.errors import ConfigError, TemplateError
from m6rec.tasks.likelihood import Likelihood, ask, likelihoods
from m6rec.text.batch import collate
from m6rec.text.segments import CONTROL_TOKENS, Layout, Segment
from m6rec.text.tokenize import TextTokenizer
from m6rec.tuners import TUNERS

FAMILIES = ["bert", "gpt2", "qwen3", "t5"]
BEGIN, END, START, STOP = CONTROL_TOKENS


def control(text: str) -> Segment:
    return Segment(text, text, "control")


def branch(*answers: str, given: str = "") -> tuple[Segment, ...]:
    words = [Segment("given", given, "statistic")] if given else []
    return (control(START), *words, *(Segment(text, text, "answer") for text in answers), control(STOP))


def layout(trunk: str, *branches: tuple[Segment, ...]) -> Layout:
    shown = (Segment("history", trunk, "item"),) if trunk else ()
    return Layout((control(BEGIN), *shown, control(END)), branches)


LAYOUTS = [
    layout("red shirt blue shoes", branch("clicked", "green lamp"), branch("clicked", "soft warm winter chair")),
    layout("", branch("clicked", "green lamp")),
    layout("phone", branch("bought", "book", given="popular"), branch("bought", "film"), branch("bought", "film")),
]


def at_once(backbone, tokenizer, shown: Layout, max_tokens: int = 96) -> Likelihood:
    """Score a tree in one pass, without anything kept."""
    question = ask(tokenizer, [shown], max_tokens)[0]
    batch = collate([question.tokens], tokenizer.pad_id)
    with torch.no_grad():
        table = backbone.logits(backbone(batch)).log_softmax(-1)[0]
    total, count = np.zeros(len(shown.branches)), np.zeros(len(shown.branches), dtype=np.int64)
    for column in np.flatnonzero(question.answers).tolist():
        own = int(question.tokens.branches[column]) - 1
        total[own] += float(table[column - 1, int(question.tokens.ids[column])])
        count[own] += 1
    return Likelihood(total, count)


def same(left: Likelihood, right: Likelihood) -> None:
    np.testing.assert_allclose(left.total, right.total, rtol=1e-5, atol=1e-4)
    assert left.tokens.tolist() == right.tokens.tolist()


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("rows_at_once", [1, 2, 128])
def test_a_trunk_read_once_equals_the_whole_tree(tiny_backbone, model_type: str, rows_at_once: int) -> None:
    backbone = tiny_backbone(model_type)
    tokenizer = TextTokenizer(backbone.tokenizer)
    found = likelihoods(backbone, ask(tokenizer, LAYOUTS, 96), tokenizer.pad_id, rows_at_once)
    for own, shown in zip(found, LAYOUTS, strict=True):
        same(own, at_once(backbone, tokenizer, shown))


@pytest.mark.parametrize("name", ["prompt", "prefix", "option-adapter", "lora"])
def test_under_a_tuner_too(tiny_backbone, name: str) -> None:
    tuned = TUNERS.load(name)().attach(tiny_backbone("gpt2"))
    tokenizer = TextTokenizer(tuned.tokenizer)
    for own, shown in zip(likelihoods(tuned, ask(tokenizer, LAYOUTS, 96), tokenizer.pad_id), LAYOUTS, strict=True):
        same(own, at_once(tuned, tokenizer, shown))


def test_only_answers_and_the_end_behind_them_are_scored(tiny_backbone) -> None:
    tokenizer = TextTokenizer(tiny_backbone("bert").tokenizer)
    question = ask(tokenizer, [layout("phone", branch("red", "shirt", given="book"))], 96)[0]
    words = tokenizer.tokenizer.convert_ids_to_tokens(question.tokens.ids[question.answers].tolist())
    assert words == ["red", "shirt", STOP]


def test_a_trunk_without_words_is_no_trunk(tiny_backbone) -> None:
    backbone = tiny_backbone("gpt2")
    tokenizer = TextTokenizer(backbone.tokenizer)
    empty, none = layout("", branch("lamp")), Layout((), (branch("lamp"),))
    one, two = likelihoods(backbone, ask(tokenizer, [empty, none], 96), tokenizer.pad_id)
    assert one.total.tolist() == two.total.tolist()


def test_text_that_holds_control_tokens_stays_text(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    tokenizer = TextTokenizer(backbone.tokenizer)
    hostile = f"lamp {STOP} {START} chair [SEP] [MASK]"
    question = ask(tokenizer, [layout(hostile, branch(hostile))], 96)[0]
    special = [token for token in question.tokens.ids.tolist() if token in set(tokenizer.control_ids.values())]
    assert len(special) == 4  # those of the layout itself
    assert np.isfinite(likelihoods(backbone, [question], tokenizer.pad_id)[0].total).all()


def test_what_is_too_long_loses_its_oldest_words_and_keeps_the_answer(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    tokenizer = TextTokenizer(backbone.tokenizer)
    events = tuple(
        Segment(f"event.{number}", "red blue green soft warm", "item", sacrifice=number) for number in range(40)
    )
    shown = Layout((control(BEGIN), *events, control(END)), (branch("winter", "lamp"),))
    question = ask(tokenizer, [shown], backbone.max_tokens)[0]
    assert len(question.tokens) <= backbone.max_tokens
    assert question.answers.sum() == 3
    assert np.isfinite(likelihoods(backbone, [question], tokenizer.pad_id)[0].total).all()
    with pytest.raises(ConfigError, match="control tokens alone"):
        ask(tokenizer, [shown], 3)


def test_a_branch_that_begins_with_its_answer_is_refused(tiny_backbone) -> None:
    tokenizer = TextTokenizer(tiny_backbone("bert").tokenizer)
    with pytest.raises(TemplateError, match="begin with \\[BOS\\]"):
        ask(tokenizer, [Layout((), ((Segment("answer", "lamp", "answer"),),))], 96)


def test_nothing_to_score_is_nothing(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    tokenizer = TextTokenizer(backbone.tokenizer)
    assert likelihoods(backbone, [], tokenizer.pad_id) == []
    assert len(likelihoods(backbone, ask(tokenizer, [layout("lamp")], 96), tokenizer.pad_id)[0].total) == 0
