"""The loop: read the prompts once, then choose and read one token at a time; finished rows leave the batch.

Knows no task and no prompt file.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.decoding import beam
from m6rec.decoding.config import DecodingConfig
from m6rec.decoding.lines import Line, chance
from m6rec.decoding.opening import Opening, Written, check_room
from m6rec.decoding.reading import begin, go_on
from m6rec.decoding.rules import Rules
from m6rec.errors import ConfigError
from m6rec.text.tokenize import TextTokenizer


def write(
    backbone: Backbone, text: TextTokenizer, openings: Sequence[Opening], config: DecodingConfig | None = None
) -> list[Written]:
    """Return one answer for each prompt.

    Prompts may have any lengths; one that comes several times (``Opening.draw``) is read once. An answer does not
    depend on what else is in the batch.

    Args:
        backbone: with a language-model head, tuned or not.
        text: its tokenizer.
        openings: what to go on from.
        config: how; default: greedily.

    Raises:
        ConfigError: a prompt that is too long or has no open branch, or a constraint that allows nothing.
        BackboneError: the backbone keeps no past.
    """
    config = config or DecodingConfig()
    if not openings:
        return []
    if config.strategy == "beam":
        check_room(openings, config.max_new_tokens, backbone.max_tokens)
        lines = beam.search(backbone, text, openings, config)
    else:
        lines = [Line(opening) for opening in openings]
        for _ in advance(backbone, text, lines, config):
            pass
    return [line.written(config, text) for line in lines]


def stream(
    backbone: Backbone, text: TextTokenizer, opening: Opening, config: DecodingConfig | None = None
) -> Iterator[str]:
    """Yield the answer to one prompt in pieces, as they are sure; together they are what :func:`write` returns.

    A word is sure once the next one has begun: the tokens of a word are not its letters.

    Raises:
        ConfigError: as :func:`write`, and beams, whose beginnings change until the end.
    """
    config = config or DecodingConfig()
    if config.strategy == "beam":
        raise ConfigError("beams cannot be streamed, for their beginning changes until the end; use greedy or sample")
    line, said = Line(opening), ""
    for _ in advance(backbone, text, [line], config):
        sure = line.written(config, text).text.rpartition(" ")[0]
        # Half of a stop string is not to be said: it may turn out to be the end.
        if len(sure) > len(said) and sure.startswith(said) and not _may_stop(sure, config.stop):
            yield sure[len(said) :]
            said = sure
    yield line.written(config, text).text[len(said) :]


def advance(backbone: Backbone, text: TextTokenizer, lines: Sequence[Line], config: DecodingConfig) -> Iterator[None]:
    """Write one more token on every unfinished line, until all are finished; yield after each round."""
    check_room([line.opening for line in lines], config.max_new_tokens, backbone.max_tokens)
    rules = Rules(config, text.special_ids)
    draws = [chance(line.opening, config.seed) for line in lines] if config.strategy == "sample" else []
    logits, past = begin(backbone, [line.opening for line in lines], text.pad_id)
    alive = list(range(len(lines)))
    while True:
        written = torch.tensor([lines[row].ids for row in alive], dtype=torch.long, device=logits.device)
        scores = rules.allow([lines[row].opening for row in alive], written, logits)
        tokens = _draw(rules.warp(written, scores), [draws[row] for row in alive]) if draws else scores.argmax(1)
        chosen = logits.log_softmax(1).gather(1, tokens[:, None])[:, 0]
        for row, token, log_prob in zip(alive, tokens.tolist(), chosen.tolist(), strict=True):
            lines[row].add(token, log_prob, config, text)
        yield
        kept = [place for place, row in enumerate(alive) if lines[row].ended is None]
        if not kept:
            return
        rows = torch.tensor(kept, device=tokens.device)
        alive = [alive[place] for place in kept]
        logits, past = go_on(backbone, past.take(rows) if len(kept) < len(tokens) else past, tokens[rows])


def _draw(scores: Float[Tensor, "rows vocabulary"], draws: Sequence[torch.Generator]) -> Int[Tensor, " rows"]:
    """Draw one token a row, with one number of the row's own chance."""
    cumulated = scores.double().softmax(1).cumsum(1)
    numbers = torch.stack([torch.rand(1, generator=draw, dtype=torch.float64) for draw in draws]).to(scores.device)
    # Scaled by the last sum, which rounding keeps a hair from 1.
    return torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True)[:, 0]


def _may_stop(said: str, stop: Sequence[str]) -> bool:
    """Tell whether a text ends in the beginning of a stop string.

    >>> _may_stop("a lamp. It", ("It is",)), _may_stop("a lamp.", ("It is",))
    (True, False)
    """
    return any(said.endswith(word[:length]) for word in stop for length in range(1, len(word)))
