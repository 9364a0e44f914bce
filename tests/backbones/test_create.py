"""Models that a run makes: random ones and pruned ones, written, found again, and equal."""

import pytest
import torch

from m6rec.backbones.create import create_model, keep_layers, prune_model, save_backbone
from m6rec.backbones.resolve import resolve_backbone
from m6rec.backbones.shape import Shape
from m6rec.errors import BackboneError, ConfigError
from m6rec.text.batch import collate
from m6rec.text.segments import Layout, Segment
from m6rec.text.tokenize import TextTokenizer
from m6rec.tuners import TUNERS

TEXTS = [f"the user bought {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("shoes", "lamps")]
SMALL = {"vocabulary": 400, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "feed_forward": 48, "max_tokens": 64}


def tree(backbone):
    """Return a source and a target in the backbone's tokens."""
    words = TextTokenizer(backbone.tokenizer)
    regions = [
        tuple(Segment(text, text, "answer" if text in TEXTS else "control") for text in region)
        for region in (("[BOS']", TEXTS[0], "[EOS']"), ("[BOS]", TEXTS[1], "[EOS]"))
    ]
    return collate(words.layouts([Layout(regions[0], (regions[1],))]), words.pad_id)


def logits(backbone):
    batch = tree(backbone)
    return backbone.logits(backbone(batch))


@pytest.mark.parametrize("model_type", ["llama", "bert", "t5"])
class TestNew:
    @pytest.fixture
    def folder(self, model_type, tmp_path):
        create_model(Shape(model_type, **SMALL), TEXTS, tmp_path / "model", seed=3)
        return tmp_path / "model"

    def test_it_is_what_was_asked_for(self, folder, model_type):
        backbone = resolve_backbone(folder)
        assert backbone.hidden_size == 32
        assert backbone.num_layers == (4 if model_type == "t5" else 2)
        assert backbone.control.std() > 0
        assert torch.isfinite(logits(backbone)).all()

    def test_a_seed_makes_one_model(self, folder, model_type, tmp_path):
        create_model(Shape(model_type, **SMALL), TEXTS, tmp_path / "again", seed=3)
        create_model(Shape(model_type, **SMALL), TEXTS, tmp_path / "other", seed=4)
        prints = [resolve_backbone(place).fingerprint for place in (folder, tmp_path / "again", tmp_path / "other")]
        assert prints[0] == prints[1] != prints[2]

    def test_what_is_saved_is_what_is_found(self, folder, tmp_path):
        backbone = resolve_backbone(folder)
        with torch.no_grad():  # as training leaves it: the control rows no longer those of the table
            for parameter in backbone.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        save_backbone(backbone, tmp_path / "saved")
        again = resolve_backbone(tmp_path / "saved")
        assert torch.equal(again.control, backbone.control)
        assert torch.allclose(logits(again), logits(backbone), atol=1e-6)
        assert not list(tmp_path.glob(".saved*"))

    def test_half_the_bytes_compute_in_float32(self, folder, tmp_path):
        backbone = resolve_backbone(folder)
        save_backbone(backbone, tmp_path / "half", torch.bfloat16)
        again = resolve_backbone(tmp_path / "half")
        sizes = [(place / "model.safetensors").stat().st_size for place in (folder, tmp_path / "half")]
        assert sizes[1] < 0.6 * sizes[0]
        assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
        assert torch.allclose(logits(again), logits(backbone), atol=0.05)


def test_a_published_model_is_saved_with_its_control_rows(tiny_backbone, tmp_path):
    for model_type in ("bert", "gpt2", "qwen3", "t5"):
        backbone = tiny_backbone(model_type)
        with torch.no_grad():
            backbone.control.add_(torch.randn_like(backbone.control))
        save_backbone(backbone, tmp_path / model_type)
        assert torch.allclose(logits(resolve_backbone(tmp_path / model_type)), logits(backbone), atol=1e-5)


def test_a_pruned_model_reads_its_corpus_as_before(tiny_backbone, tmp_path):
    backbone = tiny_backbone("bert")
    prune_model(backbone, TEXTS, tmp_path / "pruned")
    pruned = resolve_backbone(tmp_path / "pruned")
    assert len(pruned.tokenizer) < len(backbone.tokenizer)
    assert torch.allclose(pruned(tree(pruned)), backbone(tree(backbone)), atol=1e-6)


def test_a_tuned_backbone_is_not_saved_as_a_bare_one(tiny_backbone, tmp_path):
    tuned = TUNERS.load("lora")().attach(tiny_backbone("llama"))
    with pytest.raises(BackboneError, match="start=RUN"):
        save_backbone(tuned, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("wrong", [{"hidden_size": 36, "num_heads": 4}, {"num_layers": 0}])
def test_an_impossible_shape_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Shape(**wrong)


class TestKeepLayers:
    def test_the_walk_skips_the_others(self, tiny_backbone, tmp_path):
        whole, thin = tiny_backbone("bert"), tiny_backbone("bert")
        keep_layers(thin, 2)
        batch = tree(whole)
        assert thin.num_layers == 2
        torch.testing.assert_close(thin(batch), whole(batch, layers=[0, 2]))
        save_backbone(thin, tmp_path / "thin")
        again = resolve_backbone(tmp_path / "thin")
        assert again.num_layers == 2
        torch.testing.assert_close(again(batch), thin(batch))

    @pytest.mark.parametrize("number", [0, 4])
    def test_more_than_there_are_is_refused(self, tiny_backbone, number):
        with pytest.raises(ConfigError, match=f"got {number}, expected 1 to 3"):
            keep_layers(tiny_backbone("bert"), number)
