from copy import deepcopy

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from m6rec.errors import BackboneError, ConfigError
from m6rec.text.segments import Layout, Segment
from m6rec.text.tokenize import TextTokenizer

HOSTILE = [
    "[EOS]", "[BOS']", "a[EOS']b", "[BOS]", "[SEP]", "[CLS] x [MASK]", "[sep]", "[PAD]", "<|endoftext|>", "x</s>y",
    "<pad>", "<unk>", "<extra_id_0>", "[ EOS ]", "<|endoftext|><|endoftext|>[EOS][EOS]", "</s> </s>",
]  # fmt: skip
STRANGE = [
    "",
    " ",
    "😀👩‍👩‍👧",
    "שלום עולם",
    "مرحبا",
    "红色指甲油",
    "a\x00b\x07",
    "\ud800 lone",
    "x" * 10_000,
    "{{ 7*7 }}",
    "e\u0301",
]


def special_ids(hf_tokenizer):
    unknown = {hf_tokenizer.unk_token_id} - {hf_tokenizer.eos_token_id}
    return {*hf_tokenizer.all_special_ids, *hf_tokenizer.get_added_vocab().values()} - unknown


@pytest.mark.parametrize("text", HOSTILE)
def test_words_never_become_control_or_special_tokens(hf_tokenizer, tokenizer, text):
    for spoken in (text, f"red {text} polish", f"red{text}polish", text.lower(), text.upper()):
        ids = tokenizer.text(spoken)
        assert special_ids(hf_tokenizer).isdisjoint(ids)
        assert ids


def test_without_our_care_they_would(hf_tokenizer):
    assert not special_ids(hf_tokenizer).isdisjoint(
        hf_tokenizer("red [EOS] polish", add_special_tokens=False)["input_ids"]
    )


def test_added_tokens_that_are_not_special_are_kept_out_too(hf_tokenizer):
    wider = deepcopy(hf_tokenizer)
    wider.add_tokens(["<item_7>"])
    ids = TextTokenizer(wider).text("buy <item_7> now")
    assert wider.convert_tokens_to_ids("<item_7>") not in ids
    assert "7" in wider.decode(ids)


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_any_text_can_be_tokenised(tokenizer, text):
    assert all(isinstance(token, int) for token in tokenizer.text(text))


def test_ordinary_words_keep_their_own_tokens(hf_tokenizer, tokenizer):
    assert "red nail polish" in hf_tokenizer.decode(tokenizer.text("red nail polish"))


def test_segments_side_by_side_read_as_one_sentence(hf_tokenizer, tokenizer):
    apart = tokenizer.text("two hours ago bought") + tokenizer.text("a red nail polish")
    assert apart == tokenizer.text("two hours ago bought a red nail polish")


def test_many_texts_equal_one_by_one_and_the_cache_changes_nothing(hf_tokenizer):
    texts = ["red nail polish", "", "blue [EOS] polish", "red nail polish"]
    small, large = TextTokenizer(hf_tokenizer, cache_size=1), TextTokenizer(hf_tokenizer)
    assert small.texts(texts) == large.texts(texts) == [TextTokenizer(hf_tokenizer).text(text) for text in texts]
    assert small.texts(texts) == large.texts(texts)


def test_cache_is_bounded(bpe):
    tokenizer = TextTokenizer(bpe.tokenizer, cache_size=3)
    tokenizer.texts([f"text {number}" for number in range(10)])
    tokenizer.text("one more")
    assert len(tokenizer._cache) == 3


def test_what_is_returned_can_be_changed_without_harm(bpe):
    bpe.text("red").append(99)
    assert 99 not in bpe.text("red")


def test_tokenizer_without_control_tokens_is_refused():
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(BackboneError, match=r"lacks the control token \[BOS'\].*add_tokens"):
        TextTokenizer(plain)


def word(name, text, block=0, **options):
    return Segment(name, text, "item", block=block, **options)


def control(token, block=0):
    return Segment(token, token, "control", block=block)


def tree():
    """Two events of blocks 1 and 2; a branch after the first event, and one after both."""
    trunk = (control("[BOS']"), word("profile", "ab"), word("1", "cde", 1, sacrifice=0), word("2", "f", 2, sacrifice=1))
    first = (control("[EOS']", 1), control("[BOS]", 1), word("x", "gh", 1), control("[EOS]", 1))
    second = (control("[EOS']", 2), control("[BOS]", 2), word("y", "i", 2), control("[EOS]", 2))
    return Layout(trunk, (first, second), dropped=2)


def test_hand_worked_tree(letters):
    tokens = letters.layout(tree())
    bos_source, eos_source, bos, eos = 27, 28, 29, 30
    expected = {
        "ids": [bos_source, 0, 1, 2, 3, 4, 5, eos_source, bos, 6, 7, eos, eos_source, bos, 8, eos],
        # The first branch hangs on block 1, whose last token stands at 5; the second on block 2, which ends at 6.
        "positions": [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 7, 8, 9, 10],
        "blocks": [0, 0, 0, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 2, 2, 2],
        "branches": [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2],
        "segments": [0, 1, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11],
    }
    for name, values in expected.items():
        column = getattr(tokens, name)
        assert column.tolist() == values, name
        assert column.dtype == np.int32
    assert tokens.dropped == 2


def test_branch_without_trunk_starts_at_zero(letters):
    tokens = letters.layout(Layout((), ((control("[BOS]"), word("x", "ab"), control("[EOS]")),)))
    assert tokens.positions.tolist() == [0, 1, 2, 3]
    assert tokens.branches.tolist() == [1, 1, 1, 1]


def test_nothing_at_all(letters):
    assert len(letters.layout(Layout(()), max_tokens=5)) == 0


def test_many_layouts_equal_one_by_one(letters):
    layouts = [tree(), Layout((word("a", "abc"),)), Layout(())]
    for one, many in zip([letters.layout(layout) for layout in layouts], letters.layouts(layouts), strict=True):
        assert one.ids.tolist() == many.ids.tolist()


def test_segment_budget_cuts_the_tail(letters):
    tokens = letters.layout(Layout((word("a", "abcdef", budget_tokens=2), word("b", "ghi", budget_tokens=0))))
    assert tokens.ids.tolist() == [0, 1]


def test_long_layouts_lose_their_oldest_event_first(letters):
    assert letters.layout(tree(), max_tokens=11).dropped == 2
    tokens = letters.layout(tree(), max_tokens=10)
    assert tokens.dropped == 3
    assert 2 not in tokens.segments
    assert {3, 1} <= set(tokens.segments.tolist())
    # What hung behind the dropped event moves up.
    assert tokens.positions.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7, 4, 5, 6, 7]


def test_stub_and_item_of_an_event_go_together(letters):
    trunk = (word("1.stub", "a", sacrifice=3), word("1.item", "bcd", sacrifice=3), word("2.item", "efg", sacrifice=4))
    tokens = letters.layout(Layout(trunk), max_tokens=6)
    assert tokens.ids.tolist() == [4, 5, 6]
    assert tokens.dropped == 1


def test_when_no_event_is_left_the_longest_text_is_cut_and_never_a_control_token(letters):
    tokens = letters.layout(tree(), max_tokens=6)
    assert tokens.dropped == 4
    assert tokens.positions.max() == 5
    assert [token for token in tokens.ids if token >= 27] == [27, 28, 29, 30, 28, 29, 30]


@pytest.mark.parametrize("max_tokens", range(4, 12))
def test_every_path_fits(letters, max_tokens):
    assert letters.layout(tree(), max_tokens).positions.max() < max_tokens


def test_control_tokens_alone_must_fit(letters):
    with pytest.raises(ConfigError, match="max_tokens=3, expected at least 4"):
        letters.layout(tree(), max_tokens=3)
