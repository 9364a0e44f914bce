"""Item ids as words, for models whose vocabulary is a catalogue: a tokenizer, and batches without any text.

This module knows no family.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from m6rec.text.batch import TokenBatch

UNKNOWN = "[UNK]"


def item_tokenizer(num_items: int) -> Any:
    """Return a Hugging Face tokenizer that reads ``"17 4"`` as the items 17 and 4: token id = item id.

    Any other word becomes the token after the last item, which needs a row of its own in the model.

    >>> item_tokenizer(20)("17 4 99")["input_ids"]
    [17, 4, 20]
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {**{str(item): item for item in range(num_items)}, UNKNOWN: num_items}
    inner = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=UNKNOWN)


def item_batch(items: Int[Tensor, "batch length"], end: int | None = None) -> TokenBatch:
    """Return sequences of items as a batch of plain trunks.

    Args:
        items: item ids, oldest first, padded on the right with ``-1``.
        end: id of a control token to put behind each row's last item (PeterRec's [TCL]).
    """
    lengths = (items >= 0).sum(1, keepdim=True)
    if end is not None:
        items = torch.cat([items, torch.full_like(items[:, :1], -1)], dim=1).scatter(1, lengths, end)
    keep, zero = items >= 0, torch.zeros_like(items)
    positions = (torch.arange(items.shape[1], device=items.device) + zero).masked_fill(~keep, 0)
    return TokenBatch(ids=items.clamp(min=0), keep=keep, positions=positions, blocks=zero, branches=zero)
