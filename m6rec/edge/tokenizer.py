"""A ``tokenizer.json`` with the few ways of asking that ``TextTokenizer`` has. Loads no transformers and no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m6rec.errors import RunError, needs


class EdgeTokenizer:
    """The tokenizer of an exported run.

    Args:
        path: its ``tokenizer.json``.
        special: role (``pad``, ``unk``, ``cls``, ...) -> token.

    Raises:
        MissingExtraError: ``tokenizers`` is not installed.
        RunError: the file is missing or damaged.
    """

    def __init__(self, path: Path, special: Mapping[str, str]) -> None:
        with needs("edge"):
            from tokenizers import Tokenizer
        if not path.is_file():
            raise RunError(f"{path} is missing; export the run again")
        try:
            self._inner: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise RunError(f"{path} is damaged ({error}); export the run again") from error
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True  # words in a text never become a special token
        ids = {role: self._inner.token_to_id(token) for role, token in special.items()}
        roles = ("bos", "eos", "sep", "cls", "pad", "mask", "unk")
        for role in roles:
            setattr(self, f"{role}_token_id", ids.get(role))
        self.all_special_ids = sorted({number for number in ids.values() if number is not None})

    def get_added_vocab(self) -> dict[str, int]:
        """Return the tokens that are in no model's vocabulary: the control tokens among them."""
        return {token.content: number for number, token in self._inner.get_added_tokens_decoder().items()}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of ids."""
        return [self._inner.id_to_token(number) for number in ids]

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        """Return the ids of texts, without begin and end tokens."""
        return {"input_ids": [found.ids for found in self._inner.encode_batch(list(texts), add_special_tokens=False)]}
