"""A shared, factorised or cut model is an ordinary backbone: the same states before and after its folder."""

import pytest
import torch

from m6rec.backbones.anatomy import part
from m6rec.backbones.resolve import resolve_backbone
from m6rec.backbones.structure import CUTS, Structure, narrow, save_structured, set_layers, single_stack
from m6rec.compressors.cost import Size
from m6rec.compressors.share import ShareConfig, factorised, share
from m6rec.compressors.structured import Importance, StructuredConfig, slim
from m6rec.errors import BackboneError, ConfigError
from m6rec.tuners import TUNERS
from tests.contracts.backbone_contract import BLOCKS, BRANCHES, TRUNK, BackboneContract, close, tree_batch

BATCH = tree_batch(TRUNK, BLOCKS, BRANCHES)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def chance(backbone) -> Importance:
    """Return an importance that has nothing to do with the model."""
    generator, depth = torch.Generator().manual_seed(5), backbone.num_layers
    heads = [torch.rand(4, generator=generator) for _ in range(depth)] if backbone.family == "encoder" else []
    units = [torch.rand(64, generator=generator) for _ in range(depth)]
    return Importance(heads, units, torch.rand(depth, generator=generator))


class TestShared(BackboneContract):
    @pytest.fixture
    def backbone(self, tiny_backbone):
        made = tiny_backbone("bert")
        share(made, ShareConfig(groups=2, embedding_rank=8))
        return made


class TestCut(BackboneContract):
    @pytest.fixture
    def backbone(self, tiny_backbone):
        made = tiny_backbone("bert")
        slim(made, chance(made), StructuredConfig(heads=0.4, units=0.5, layers=1))
        return made


SHARED = [
    ("bert", {"groups": 1, "embedding_rank": 8}),
    ("bert", {"groups": 2, "weights": "pick"}),
    ("gpt2", {"groups": 1, "weights": "scratch"}),
    ("llama", {"groups": 2}),
]


@pytest.mark.parametrize(("family", "settings"), SHARED, ids=str)
def test_a_shared_model_through_its_folder(tiny_backbone, tmp_path, family, settings):
    made = tiny_backbone(family)
    share(made, ShareConfig(**settings))
    save_structured(made, tmp_path)
    again = resolve_backbone(tmp_path)
    close(again(BATCH), made(BATCH))
    assert again.fingerprint == made.fingerprint
    assert Size.of(again.model) == Size.of(made.model)
    assert Structure.of(again.model) == Structure.of(made.model)


@pytest.mark.parametrize(("family", "heads"), [("bert", 0.3), ("llama", 0.0), ("qwen3", 0.0)])
def test_a_cut_model_through_its_folder(tiny_backbone, tmp_path, family, heads):
    made = tiny_backbone(family)
    slim(made, chance(made), StructuredConfig(heads=heads, units=0.5, layers=1))
    save_structured(made, tmp_path)
    again = resolve_backbone(tmp_path)
    assert again.num_layers == 2
    close(again(BATCH), made(BATCH))


def test_one_layer_for_all_counts_once(tiny_backbone):
    made = tiny_backbone("bert")
    layer = sum(weight.numel() for weight in single_stack(made.model)[0].parameters())
    before = Size.of(made.model).parameters
    share(made, ShareConfig(groups=1))
    assert before - Size.of(made.model).parameters == 2 * layer


def test_picking_is_the_middle_layer_at_every_place(tiny_backbone):
    made, plain = tiny_backbone("bert"), tiny_backbone("bert")
    share(made, ShareConfig(groups=1, weights="pick"))
    close(made(BATCH), plain(BATCH, layers=[1, 1, 1]))


def test_as_many_groups_as_layers_and_full_rank_change_nothing(tiny_backbone):
    made, plain = tiny_backbone("bert"), tiny_backbone("bert")
    share(made, ShareConfig(groups=3, embedding_rank=32))
    close(made(BATCH), plain(BATCH), 1e-4)


def test_the_nearest_table_of_a_rank():
    table = torch.randn(20, 3) @ torch.randn(3, 12)
    close(factorised(table, 3).weight, table, 1e-4)


def test_adapters_are_not_shared(tiny_backbone):
    made = tiny_backbone("bert")
    share(made, ShareConfig(groups=1))
    kind = TUNERS.load("lora")
    tuned = kind(kind.Config()).attach(made)
    with torch.enable_grad():
        tuned(BATCH).pow(2).sum().backward()
    inserted = [name for name, weight in tuned.named_parameters() if weight.requires_grad and "lora_B" in name]
    assert len({name.split(".layer.")[1].split(".")[0] for name in inserted}) == 3
    gradients = [tuned.get_parameter(name).grad for name in inserted[:: len(inserted) // 3]]
    assert not torch.equal(gradients[0], gradients[1])


def test_what_is_cut_is_what_matters_least(tiny_backbone):
    """Hidden units that do nothing can go without a trace, and they go first."""
    made, plain = tiny_backbone("bert"), tiny_backbone("bert")
    for backbone in (made, plain):
        for layer in single_stack(backbone.model):
            part(layer, "output.dense").weight[:, ::2] = 0
    measured = chance(made)
    for score in measured.units:
        score[::2], score[1::2] = 0, 1
    slim(made, measured, StructuredConfig(heads=0, units=0.5))
    close(made(BATCH), plain(BATCH))
    assert Structure.of(made.model).widths == (32, 32, 32)


def test_dropped_layers_are_a_shorter_walk(tiny_backbone):
    made, plain = tiny_backbone("gpt2"), tiny_backbone("gpt2")
    set_layers(made.model, [single_stack(made.model)[place] for place in (0, 2)])
    made.num_layers = 2
    close(made(BATCH), plain(BATCH, layers=[0, 2]))
    assert [layer.attn.layer_idx for layer in single_stack(made.model)] == [0, 1]


def test_heads_in_another_order_are_the_same_model(tiny_backbone):
    made, plain = tiny_backbone("bert"), tiny_backbone("bert")
    for layer in single_stack(made.model):
        narrow(layer, CUTS["bert"], torch.arange(32).view(4, 8).flip(0).flatten(), torch.arange(64).flip(0))
    close(made(BATCH), plain(BATCH))


BAD = [
    ("bert", ShareConfig(groups=4), ConfigError, "groups: got 4, expected at most 3"),
    ("bert", ShareConfig(embedding_rank=33), ConfigError, "embedding_rank: got 33, expected at most 32"),
    ("gpt2", ShareConfig(embedding_rank=8), BackboneError, "leave embedding_rank out"),
    ("t5", ShareConfig(), BackboneError, "expected an encoder or a decoder"),
]


@pytest.mark.parametrize(("family", "config", "error", "message"), BAD, ids=lambda value: str(value)[:12])
def test_what_cannot_be_shared(tiny_backbone, family, config, error, message):
    with pytest.raises(error, match=message):
        share(tiny_backbone(family), config)


@pytest.mark.parametrize("settings", [{"heads": 1.0}, {"units": -0.1}, {"layers": -1}, {"batches": 0}])
def test_shares_out_of_range(settings):
    with pytest.raises(ConfigError, match="expected"):
        StructuredConfig(**settings)


def test_what_cannot_be_cut(tiny_backbone):
    made = tiny_backbone("bert")
    with pytest.raises(ConfigError, match="layers: got 3, expected less than 3"):
        slim(made, chance(made), StructuredConfig(layers=3))
    with pytest.raises(BackboneError, match="whose heads share keys"):
        slim(tiny_backbone("llama"), chance(made), StructuredConfig(heads=0.5))
    with pytest.raises(BackboneError, match="can be cut"):
        slim(tiny_backbone("gpt2"), chance(made), StructuredConfig())


def test_other_weights_than_the_config_says(tiny_backbone, tmp_path):
    made = tiny_backbone("bert")
    save_structured(made, tmp_path)
    share(made, ShareConfig(groups=1))
    save_structured(made, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="other weights"):
        resolve_backbone(tmp_path)
