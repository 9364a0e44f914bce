"""The loop: cached equals uncached, batched equals single, ours equals the library's, chance repeats."""

from dataclasses import replace

import pytest
import torch

from m6rec.backbones.anatomy import logit_scale
from m6rec.decoding import DecodingConfig, Opening, stream, write
from m6rec.errors import BackboneError, ConfigError
from m6rec.text.batch import collate
from m6rec.text.tokenize import TextTokenizer
from tests.decoding.conftest import tree

CONFIGS = {
    "greedy": DecodingConfig(max_new_tokens=6),
    "penalties": DecodingConfig(max_new_tokens=6, repetition_penalty=1.4, no_repeat_ngram=2, min_new_tokens=3),
    "sample": DecodingConfig("sample", max_new_tokens=6, temperature=0.8, top_k=20, top_p=0.9, seed=3),
    "beam": DecodingConfig("beam", max_new_tokens=5, num_beams=3),
}


def grown(opening, ids):
    tokens = opening.tokens
    split = int((tokens.branches == 0).sum())
    return tree(tokens.ids[:split], [*tokens.ids[split:], *ids])


def logits_of(backbone, layout, pad_id):
    with torch.no_grad():
        return backbone.logits(backbone(collate([layout], pad_id))[0, -1]).float()


def test_every_token_is_the_likeliest_of_a_fresh_reading(backbone, text, openings):
    for opening, written in zip(openings, write(backbone, text, openings, CONFIGS["greedy"]), strict=True):
        total = 0.0
        for place in range(len(written.ids) + (written.ended == "end")):
            logits = logits_of(backbone, grown(opening, written.ids[:place]), text.pad_id)
            allowed = logits.clone()
            allowed[sorted(text.special_ids - opening.ends)] = -torch.inf
            token = int(allowed.argmax())
            assert token == written.ids[place] if place < len(written.ids) else token in opening.ends
            total += float(logits.log_softmax(0)[token])
        assert written.log_prob == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_writes_what_each_alone_writes(backbone, text, openings, name):
    together = write(backbone, text, openings, CONFIGS[name])
    alone = [write(backbone, text, [opening], CONFIGS[name])[0] for opening in openings]
    turned = write(backbone, text, openings[::-1], CONFIGS[name])[::-1]
    for answer, one, other in zip(together, alone, turned, strict=True):
        assert answer.ids == one.ids == other.ids
        assert answer.log_prob == pytest.approx(one.log_prob, abs=1e-3)


def test_one_beam_is_the_greedy_search(backbone, text, openings):
    greedy = write(backbone, text, openings, CONFIGS["greedy"])
    beam = write(backbone, text, openings, replace(CONFIGS["greedy"], strategy="beam", num_beams=1))
    assert [answer.ids for answer in greedy] == [answer.ids for answer in beam]
    assert [answer.ended for answer in greedy] == [answer.ended for answer in beam]


@pytest.mark.parametrize("model_type", ["bert", "t5"])
def test_wide_beams_find_the_likeliest_text_of_all(tiny_backbone, model_type):
    backbone = tiny_backbone(model_type)
    text = TextTokenizer(backbone.tokenizer)
    allowed = text.text("red blue lamp")
    begin = text.control_ids["[BOS]"]

    def three_words(_, logits):
        return logits.where(torch.isin(torch.arange(len(logits)), torch.tensor(allowed)), -torch.inf)

    opening = Opening(tree(text.text("the user bought"), [begin]), frozenset(), three_words)
    config = DecodingConfig("beam", max_new_tokens=3, num_beams=9)
    found = write(backbone, text, [opening], config)[0]
    best = max(
        ([a, b, c] for a in allowed for b in allowed for c in allowed),
        key=lambda ids: sum(
            float(logits_of(backbone, grown(opening, ids[:place]), text.pad_id).log_softmax(0)[ids[place]])
            for place in range(3)
        ),
    )
    assert list(found.ids) == best


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_it_writes_what_the_library_writes(tiny_backbone, monkeypatch, model_type, beams):
    from transformers import GenerationConfig

    backbone = tiny_backbone(model_type)
    text = TextTokenizer(backbone.tokenizer)
    source, target, end = text.text("the user bought a red lamp"), text.text("now"), 3
    if model_type == "t5":
        prompt, target = source, [backbone.model.config.decoder_start_token_id]
    else:
        prompt = source + target
    # The library's head knows no control tokens, and has rows that the tokenizer does not.
    head, scale = backbone.model.get_output_embeddings(), logit_scale(backbone.model.config)
    known = frozenset(range(len(head.weight)))
    text.special_ids = (text.special_ids | frozenset(range(backbone.first_control, len(head.weight)))) & known
    monkeypatch.setattr(backbone, "logits", lambda hidden: head(hidden * scale))
    config = GenerationConfig(
        max_new_tokens=8,
        num_beams=beams,
        early_stopping=beams > 1,
        do_sample=False,
        use_cache=False,  # the library's own cache takes a T5's encoder and decoder to be of one depth
        eos_token_id=end,
        pad_token_id=0,
        suppress_tokens=sorted(text.special_ids - {end}),
    )
    ids = torch.tensor([prompt])
    theirs = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0].tolist()
    theirs = theirs[1:] if model_type == "t5" else theirs[len(prompt) :]
    strategy = "beam" if beams > 1 else "greedy"
    opening = Opening(tree(source, target), frozenset([end]))
    ours = write(backbone, text, [opening], DecodingConfig(strategy, max_new_tokens=8, num_beams=max(2, beams)))[0]
    assert list(ours.ids) == [token for token in theirs if token not in (end, 0)]


class TestChance:
    def test_it_repeats_and_draws_differ(self, backbone, text, openings):
        config = replace(CONFIGS["sample"], temperature=3.0, top_k=0, top_p=1.0, max_new_tokens=8)
        draws = [replace(openings[0], draw=number) for number in range(4)]
        first, again = (write(backbone, text, draws, config) for _ in range(2))
        assert [answer.ids for answer in first] == [answer.ids for answer in again]
        assert len({answer.ids for answer in first}) > 1
        other = write(backbone, text, draws, replace(config, seed=4))
        assert [answer.ids for answer in first] != [answer.ids for answer in other]

    def test_draws_follow_the_probabilities(self, tiny_backbone):
        backbone = tiny_backbone("gpt2")
        text = TextTokenizer(backbone.tokenizer)
        tokens = tree(text.text("the user bought"), text.text("a"))
        config = DecodingConfig("sample", max_new_tokens=1)
        answers = write(backbone, text, [Opening(tokens, frozenset(), draw=number) for number in range(2000)], config)
        logits = logits_of(backbone, tokens, text.pad_id)
        logits[sorted(text.special_ids)] = -torch.inf
        expected = logits.softmax(0)
        counts = torch.bincount(torch.tensor([answer.ids[0] for answer in answers]), minlength=len(expected)) / 2000
        assert float((counts - expected).abs().max()) < 0.04

    def test_a_tiny_temperature_is_greedy(self, backbone, text, openings):
        cold = replace(CONFIGS["sample"], temperature=1e-7)
        greedy = write(backbone, text, openings, CONFIGS["greedy"])
        assert [answer.ids for answer in write(backbone, text, openings, cold)] == [answer.ids for answer in greedy]


class TestEnds:
    def test_no_special_token_is_written(self, backbone, text, openings):
        config = DecodingConfig("sample", max_new_tokens=12, temperature=5.0)
        for answer in write(backbone, text, openings, config):
            assert not set(answer.ids) & text.special_ids

    def test_an_answer_ends_at_its_end_and_not_before_its_least_length(self, backbone, text, openings):
        first = write(backbone, text, openings[:1], CONFIGS["greedy"])[0].ids
        ending = replace(openings[0], ends=frozenset([first[0]]))
        short = write(backbone, text, [ending], CONFIGS["greedy"])[0]
        assert (short.ids, short.text, short.ended, short.complete) == ((), "", "end", True)
        longer = write(backbone, text, [ending], replace(CONFIGS["greedy"], min_new_tokens=3))[0]
        assert len(longer.ids) >= 3
        assert first[0] not in longer.ids[:3]

    def test_what_the_limit_cut_says_so(self, backbone, text, openings):
        answer = write(backbone, text, [replace(openings[0], ends=frozenset())], CONFIGS["greedy"])[0]
        assert (len(answer.ids), answer.ended, answer.complete) == (6, "limit", False)

    def test_stop_strings_are_cut_off(self, backbone, text, openings):
        opening = replace(openings[0], ends=frozenset())
        whole = write(backbone, text, [opening], CONFIGS["greedy"])[0].text
        mark = whole[len(whole) // 2 :][:2].strip()
        answer = write(backbone, text, [opening], replace(CONFIGS["greedy"], stop=(mark,)))[0]
        assert answer.ended == "stop"
        assert answer.text == whole[: whole.index(mark)].strip()

    def test_a_constraint_says_what_may_come(self, backbone, text, openings):
        script = text.text("red winter lamp")

        def spell(written, logits):
            allowed = script[len(written)] if len(written) < len(script) else min(openings[0].ends)
            return logits.where(torch.arange(len(logits)) == allowed, -torch.inf)

        for name in ("greedy", "beam", "sample"):
            answer = write(backbone, text, [replace(openings[0], constraint=spell)], CONFIGS[name])[0]
            assert (answer.text, answer.ended) == ("red winter lamp", "end")


class TestStreams:
    @pytest.mark.parametrize("name", ["greedy", "penalties", "sample"])
    def test_the_pieces_are_the_text(self, backbone, text, openings, name):
        for opening in openings:
            pieces = list(stream(backbone, text, opening, CONFIGS[name]))
            assert "".join(pieces) == write(backbone, text, [opening], CONFIGS[name])[0].text

    def test_a_stop_string_is_never_said_by_half(self, tiny_backbone):
        backbone = tiny_backbone("bert")
        text = TextTokenizer(backbone.tokenizer)
        script = text.text("a red lamp for the user")

        def spell(written, logits):
            return logits.where(torch.arange(len(logits)) == script[len(written)], -torch.inf)

        opening = Opening(tree([5], [6]), frozenset(), spell)
        pieces = list(stream(backbone, text, opening, DecodingConfig(max_new_tokens=6, stop=("lamp for",))))
        assert "".join(pieces) == "a red"

    def test_beams_cannot(self, backbone, text, openings):
        with pytest.raises(ConfigError, match="greedy or sample"):
            next(stream(backbone, text, openings[0], CONFIGS["beam"]))


class TestMistakes:
    def test_a_prompt_that_is_too_long(self, backbone, text, openings):
        config = DecodingConfig(max_new_tokens=backbone.max_tokens)
        for name in ("greedy", "beam"):
            with pytest.raises(ConfigError, match="shorten"):
                write(backbone, text, openings, replace(config, strategy=name))

    def test_a_prompt_without_an_open_branch(self, backbone, text, openings):
        with pytest.raises(ConfigError, match="open branch"):
            write(backbone, text, [replace(openings[0], tokens=tree([5, 6], []))])

    def test_a_constraint_that_allows_nothing(self, backbone, text, openings):
        opening = replace(openings[0], constraint=lambda _, logits: torch.full_like(logits, -torch.inf))
        with pytest.raises(ConfigError, match="constraint"):
            write(backbone, text, [opening])

    def test_a_convolution_keeps_no_past(self, tiny_backbone):
        backbone = tiny_backbone("nextitnet")
        text = TextTokenizer(backbone.tokenizer)
        with pytest.raises(BackboneError):
            write(backbone, text, [Opening(tree([5], [6]), frozenset())], DecodingConfig(max_new_tokens=2))

    def test_all_wrong_settings_are_told_at_once(self):
        with pytest.raises(ConfigError) as caught:
            DecodingConfig(temperature=0, top_p=2, min_new_tokens=50, stop=("",))
        assert all(name in str(caught.value) for name in ("temperature", "top_p", "min_new_tokens", "stop"))

    def test_nothing_to_write(self, backbone, text):
        assert write(backbone, text, []) == []


def test_the_backbone_is_left_as_it_was(tiny_backbone):
    backbone = tiny_backbone("bert").train()
    text = TextTokenizer(backbone.tokenizer)
    write(backbone, text, [Opening(tree([5], [6]), frozenset())], DecodingConfig(max_new_tokens=2))
    assert backbone.training
    assert torch.is_grad_enabled()
