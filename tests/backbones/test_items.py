import torch

from m6rec.backbones.items import item_batch, item_tokenizer
from m6rec.text.segments import CONTROL_TOKENS
from m6rec.text.tokenize import TextTokenizer


def test_words_are_items_and_anything_else_is_unknown():
    tokenizer = item_tokenizer(30)
    tokenizer.add_tokens(list(CONTROL_TOKENS), special_tokens=True)
    assert TextTokenizer(tokenizer).text("29 0 30 -1 x [EOS]") == [29, 0, 30, 30, 30, 30]
    assert tokenizer.decode([29, 0]) == "29 0"
    assert tokenizer.convert_tokens_to_ids("[EOS]") == 34


def test_a_saved_tokenizer_reads_the_same(tmp_path):
    import transformers

    item_tokenizer(12).save_pretrained(tmp_path)
    assert transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)("11 12 0")["input_ids"] == [11, 12, 0]


def test_rows_become_trunks():
    batch = item_batch(torch.tensor([[5, 6, -1], [7, -1, -1]]))
    assert batch.ids.tolist() == [[5, 6, 0], [7, 0, 0]]
    assert batch.keep.tolist() == [[True, True, False], [True, False, False]]
    assert batch.positions.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert not batch.blocks.any()
    assert not batch.branches.any()


def test_the_end_token_follows_the_last_item():
    batch = item_batch(torch.tensor([[5, 6], [7, -1], [-1, -1]]), end=9)
    assert batch.ids.tolist() == [[5, 6, 9], [7, 9, 0], [9, 0, 0]]
    assert batch.keep.sum(1).tolist() == [3, 2, 1]
