"""Vocabularies made for a corpus: a SentencePiece tokenizer trained on the spot, or a pretrained one cut down.

This module knows no model: which rows of its table go with the pieces that are left, it only says.
"""

import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import BackboneError, ConfigError, DataError

# In the order of their ids. The mask's name is what people write for a blank.
SPECIAL = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "[MASK]"}

# Signs that get a piece of their own even where the corpus lacks them: marks of ours, and what people type.
ALWAYS = "".join(chr(code) for code in range(33, 127))


def train_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Return a Hugging Face tokenizer whose pieces are SentencePiece's (BPE), trained on ``texts``.

    Lossless: nothing is normalised, and characters without a piece are written as bytes. (The one exception is
    SentencePiece's own mark for a space, U+2581, which comes back as a space.)

    Args:
        texts: the corpus, one sentence or phrase each; give each once, for repetition moves the pieces.
        size: number of pieces, the five special ones and the 256 bytes among them.

    Raises:
        DataError: no text.
        ConfigError: the corpus has more different characters, or fewer different pieces, than ``size`` has room for.

    Source: Sennrich et al., BPE (ACL 2016); Kudo and Richardson, SentencePiece (EMNLP 2018).
    Differs: BPE, not SentencePiece's default. On text made from templates its Unigram model stops far below the size
        asked for and cuts finer than it must (the sample world: 3.0 characters a token against 4.4).
    """
    import sentencepiece

    found, model = (text for text in texts if text.strip()), io.BytesIO()
    first = next(found, None)
    if first is None:
        raise DataError("got no text to train a tokenizer on; look at the dataset's split and the corpus settings")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_after(first, found),
            model_writer=model,
            model_type="bpe",
            hard_vocab_limit=False,  # a small corpus may not have so many pieces: then there are fewer
            vocab_size=size,
            byte_fallback=True,
            character_coverage=1.0,
            required_chars=ALWAYS,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            user_defined_symbols=[SPECIAL["mask"]],
            num_threads=1,  # more would make the pieces depend on who came first
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"vocabulary: got {size} pieces, expected more or less for this corpus ({error})") from error
    return _as_tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))


def _after(first: str, others: Iterable[str]) -> Iterable[str]:
    yield first
    yield from others


def _as_tokenizer(pieces: Any) -> Any:
    """Return the library's own fast tokenizer with the ids and scores of a SentencePiece model.

    Differs: ``T5Tokenizer(vocab_file=...)``, the obvious way, ignores the file and returns an empty vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    inner = Tokenizer(models.BPE(ids, _merges(ids), unk_token=SPECIAL["unk"], byte_fallback=True))
    # Metaspace alone would take a text's own leading space for the one that it puts before every text.
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Words begin with their space and digits stand alone, as the pieces were trained.
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split(Regex(r"[0-9]"), "isolated")]
    )
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **special)


def _merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """Return which two pieces make a third, in the order in which they were learnt: the order of the ids."""
    merges = []
    for piece in sorted(ids, key=ids.__getitem__):
        halves = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def prune_tokenizer(tokenizer: Any, texts: Iterable[str]) -> tuple[Any, NDArray[np.int64]]:
    """Return a WordPiece tokenizer with only the pieces that ``texts`` use, and which old row each new id had.

    Every single character stays, so that any text can still be written; words that ``texts`` lack are then cut finer.

    Args:
        tokenizer: of the BERT family.
        texts: the corpus.

    Returns:
        The tokenizer, and ``[pieces]`` the old ids.

    Raises:
        BackboneError: a vocabulary of another kind, whose pieces stand on each other (merges).
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    if tree["model"]["type"] != "WordPiece":
        raise BackboneError(
            f"got a vocabulary of type {tree['model']['type']}, expected WordPiece (BERT); leave it whole: "
            "backbone.vocabulary=whole"
        )
    pieces: dict[str, int] = tree["model"]["vocab"]
    used = set(tokenizer.all_special_ids) | {entry["id"] for entry in tree["added_tokens"]}
    used |= {i for piece, i in pieces.items() if len(piece.removeprefix("##")) == 1}
    for text in texts:
        used.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    old = np.array(sorted(used), dtype=np.int64)
    new = {int(i): place for place, i in enumerate(old)}
    tree["model"]["vocab"] = {piece: new[i] for piece, i in pieces.items() if i in new}
    for entry in tree["added_tokens"]:
        entry["id"] = new[entry["id"]]
    for entry in (tree["post_processor"] or {}).get("special_tokens", {}).values():
        entry["ids"] = [new[i] for i in entry["ids"]]
    pruned = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)),
        model_max_length=tokenizer.model_max_length,
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    )
    return pruned, old
