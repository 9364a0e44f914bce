"""Vocabularies made on the spot: lossless, SentencePiece's own ids, and no words that become control."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from m6rec.errors import BackboneError, ConfigError, DataError
from m6rec.text.segments import CONTROL_TOKENS
from m6rec.text.tokenize import TextTokenizer
from m6rec.text.vocabulary import prune_tokenizer, train_tokenizer
from tests.conftest import tiny_tokenizer

TEXTS = [
    f"{verb} the {colour} {thing}, size {size}"
    for verb in ("bought", "watched", "searched for")
    for colour in ("red", "light blue", "Natural Clay")
    for thing in ("chair", "lamp – large", "Café table")
    for size in (3, 12, 250)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 420)


@given(st.text().filter(lambda text: "▁" not in text))
@settings(max_examples=60, deadline=None)
def test_it_loses_nothing(tokenizer, text):
    text = text.encode("utf-8", "replace").decode("utf-8")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_its_ids_are_sentencepieces_own(monkeypatch):
    import sentencepiece

    from m6rec.text import vocabulary

    made = []
    wrap = vocabulary._as_tokenizer
    monkeypatch.setattr(vocabulary, "_as_tokenizer", lambda pieces: (made.append(pieces), wrap(pieces))[1])
    tokenizer = train_tokenizer(TEXTS, 420)
    assert isinstance(made[0], sentencepiece.SentencePieceProcessor)
    for text in (*TEXTS, "Two  spaces, 1250 ☃ and\na line", "x"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == made[0].encode(text)


def test_it_is_the_same_after_a_round_trip_and_every_time(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert (again.mask_token, again.pad_token_id, again.bos_token_id, again.eos_token_id) == ("[MASK]", 0, 2, 3)
    assert train_tokenizer(TEXTS, 420).get_vocab() == tokenizer.get_vocab()


def test_words_never_become_control_tokens():
    tokenizer = train_tokenizer(TEXTS, 420)
    tokenizer.add_tokens(list(CONTROL_TOKENS), special_tokens=True)
    words = TextTokenizer(tokenizer)
    for text in ("[EOS] and </s>, <pad>[MASK]", "[BOS']chair", "<s><unk><0x41>"):
        ids = words.text(text)
        assert words.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text


def test_a_small_corpus_has_fewer_pieces_than_asked_for():
    assert len(train_tokenizer(["a red chair"], 3000)) < 500


@pytest.mark.parametrize("texts", [[], ["  "]])
def test_no_text_is_said(texts):
    with pytest.raises(DataError, match="no text to train"):
        train_tokenizer(texts, 500)


def test_too_few_pieces_for_the_signs_are_said():
    with pytest.raises(ConfigError, match="got 40 pieces"):
        train_tokenizer(TEXTS, 40)


class TestPruning:
    def test_the_corpus_reads_as_before_and_anything_can_be_written(self):
        whole = tiny_tokenizer()
        texts = ["the user bought red shoes", "a lamp"]
        pruned, rows = prune_tokenizer(whole, texts)
        assert len(pruned) == len(rows) < len(whole)
        for text in (*texts, "zq7!"):
            ids = pruned(text)["input_ids"]
            assert rows[ids].tolist() == whole(text)["input_ids"]
        assert pruned.unk_token_id not in pruned("watched a drama")["input_ids"]
        assert np.all(np.diff(rows) > 0)

    def test_other_vocabularies_are_left_whole(self, tokenizer):
        with pytest.raises(BackboneError, match="vocabulary=whole"):
            prune_tokenizer(tokenizer, TEXTS)
