"""What texts name, and the constraint by which they name nothing else."""

import torch

from m6rec.decoding import DecodingConfig, Opening, write
from m6rec.tasks.generation.grounding import Lexicon, Unsaid, attributes, evidence, feature_words, names
from m6rec.text.tokenize import TextTokenizer
from tests.decoding.conftest import tree


def test_longer_phrases_do_not_hide_shorter_ones_and_case_is_nothing():
    lexicon = Lexicon(["Green Living", "green", "films", "2009", "  "])
    assert lexicon.find("GREEN living, and Films of 2009") == ["green", "green living", "films"]
    assert len(lexicon) == 3


def test_attributes_are_the_values_of_fields():
    records = [
        {"title": "A", "description": "soft", "brand": "Umber & Co", "category": "Shop > Lamps", "price": 2.0},
        {"title": "B", "tags": ["warm", "red|blue"], "audience": ""},
    ]
    assert attributes(records) == ["Lamps", "Shop", "Umber & Co", "red|blue", "warm"]


def test_titles_are_named_in_full_or_without_their_subtitle():
    assert names("Dune (Dune Chronicles, Book 1)") == ["Dune (Dune Chronicles, Book 1)", "Dune"]
    assert names("Spider-Man") == ["Spider-Man"]


def test_features_are_neither_rare_nor_common():
    texts = [f"liked the {'retro' if number % 3 else 'rustic'} style" for number in range(30)]
    assert feature_words([*texts, "odd"], least=5, share=0.5) == ["rustic"]


class TestEvidence:
    attributes, features = Lexicon(["families", "travellers", "lamps"]), Lexicon(["rustic", "retro"])

    def test_it_holds_what_the_input_holds(self):
        found = evidence(
            "rustic, right for families and travellers, retro",
            self.attributes,
            self.features,
            "A rustic pot, for families",
            ["a chair, for families", "a lamp"],
            ["a chair", "a lamp"],
        )
        assert found.attributes == ("families", "rustic")
        assert found.events == (0,)
        assert found.inferred == ("retro",)
        assert found.unsupported == ("travellers",)

    def test_an_event_is_named_by_its_title(self):
        found = evidence(
            "because you read gone girl", self.attributes, self.features, "", ["x", "y"], ["Dune", "Gone Girl: A Novel"]
        )
        assert found.events == (1,)

    def test_an_empty_history_holds_nothing(self):
        assert evidence("for families", self.attributes, self.features, "", [], []).unsupported == ("families",)


class TestUnsaid:
    def test_a_text_names_only_what_it_was_told(self, tiny_backbone):
        backbone = tiny_backbone("bert")
        text = TextTokenizer(backbone.tokenizer)
        lexicon = Lexicon(["red shirt", "winter", "lamp", "drama film", "zzz"])
        config = DecodingConfig("sample", max_new_tokens=20, temperature=4.0)
        tokens = tree(text.text("the user"), [text.control_ids["[BOS]"]])
        free = [Opening(tokens, frozenset(), draw=draw) for draw in range(40)]
        told = Unsaid(lexicon, text).given(["a winter shirt"])
        bound = [Opening(tokens, frozenset(), told, draw) for draw in range(40)]
        said = {phrase for answer in write(backbone, text, free, config) for phrase in lexicon.find(answer.text)}
        assert said - {"winter"}
        kept = {phrase for answer in write(backbone, text, bound, config) for phrase in lexicon.find(answer.text)}
        assert kept <= {"winter"}

    def test_only_the_last_word_of_a_phrase_is_forbidden(self, tiny_backbone):
        text = TextTokenizer(tiny_backbone("bert").tokenizer)
        forbid = Unsaid(Lexicon(["red shirt"]), text).given([])
        red, shirt = text.text("red shirt")
        logits = torch.zeros(len(text.tokenizer))
        assert bool(torch.isfinite(forbid(torch.tensor([]).long(), logits)).all())
        after = forbid(torch.tensor([red]), logits)
        assert (after == -torch.inf).nonzero().flatten().tolist() == [shirt]
        assert bool(torch.isfinite(forbid(torch.tensor([shirt]), logits)).all())
