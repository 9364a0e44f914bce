import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.backbones.nextitnet import NextItNetBackbone
from m6rec.errors import BackboneError, ConfigError
from m6rec.late_interaction.backbone import FILE, LateBackbone, trained_late_interaction, with_late_interaction
from m6rec.late_interaction.config import LateInteractionConfig
from m6rec.late_interaction.segments import cut
from m6rec.nn.masks import additive
from m6rec.text.batch import TokenBatch
from m6rec.tuners import TUNERS
from m6rec.tuners.prompt import PromptConfig, PromptTuner
from tests.contracts.backbone_contract import close, plain_batch
from tests.late_interaction.trees import BRANCHES, CASES, FAMILIES, TRUNK, batch, late, layout


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def two_masks(backbone: LateBackbone, tree: TokenBatch) -> torch.Tensor:
    """Walk as the paper puts it: one pass over all tokens, a block-diagonal mask below and the tree's above."""
    whole = backbone.extend(tree)
    segments = cut(whole)
    runs = whole.segments + 1000 * whole.branches
    same = (runs[:, :, None] == runs[:, None, :]) & whole.keep[:, None, :]
    backward = torch.ones_like(same).tril()
    in_trunk = (whole.branches == 0)[:, :, None]
    alone = same & (backward | (in_trunk if backbone.family != "causal" else torch.zeros_like(in_trunk)))
    if backbone.family == "seq2seq":
        alone = torch.cat([alone & in_trunk, alone & ~in_trunk], dim=-1)
    hidden = backbone.embed(whole.ids, segments.offset)
    for index in range(backbone.num_alone):
        hidden = backbone.layer(index, hidden, additive(alone.unsqueeze(1)), segments.offset)
    hidden = hidden + backbone.segment_embedding(segments.path)
    for index in range(backbone.num_alone, backbone.num_layers):
        hidden = backbone.layer(index, hidden, backbone.mask(whole), whole.positions)
    return backbone.norm(hidden)[:, whole.ids.shape[1] - tree.ids.shape[1] :]


def mixed() -> TokenBatch:
    """Return three rows: a tree, a shorter one, and a trunk alone."""
    return batch(layout(), layout(TRUNK[:2], [(1, [[20], [8, 9, 10], [30]])]), layout(TRUNK[:3], []))


@pytest.mark.parametrize(("model_type", "layers"), CASES)
def test_one_pass_is_the_walk_under_two_masks(tiny_backbone, model_type: str, layers: int) -> None:
    backbone, tree = late(tiny_backbone(model_type), layers), mixed()
    close(backbone(tree)[tree.keep], two_masks(backbone, tree)[tree.keep])


@pytest.mark.parametrize("name", sorted(TUNERS))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_tuner_goes_under_two_masks(tiny_backbone, name: str, model_type: str) -> None:
    if name == "iak" or (name, model_type) in {("prefix", "t5"), ("bitfit", "gpt2")}:
        pytest.skip("refused: iak below, the others by the tuner")
    backbone, tree = late(TUNERS.load(name)().attach(tiny_backbone(model_type)), 1), mixed()
    close(backbone(tree)[tree.keep], two_masks(backbone, tree)[tree.keep])


@pytest.mark.parametrize("granularity", ["token", "pooled"])
@pytest.mark.parametrize("model_type", FAMILIES)
class TestTheTree:
    @pytest.fixture
    def backbone(self, tiny_backbone, model_type: str, granularity: str) -> LateBackbone:
        return late(tiny_backbone(model_type), 1, granularity)

    def test_a_branch_in_a_tree_equals_trunk_and_branch_alone(self, backbone: LateBackbone) -> None:
        tree, states = batch(), backbone(batch())
        for number, (block, segments) in enumerate(BRANCHES, start=1):
            alone = batch(layout([part for part in TRUNK if part[0] <= block], [(block, segments)]))
            mine = backbone(alone)[alone.branches == 1]
            close(states[tree.branches == number], mine)

    def test_batched_equals_single(self, backbone: LateBackbone) -> None:
        rows = [layout(), layout(TRUNK[:2], BRANCHES[1:2]), layout([], [(0, [[20, 21], [30]])])]
        together = backbone(batch(*rows))
        for row, single in enumerate(rows):
            close(together[row, : len(single)], backbone(batch(single))[0])

    def test_the_end_of_a_candidate_hears_of_events_and_of_its_own_words(self, backbone: LateBackbone) -> None:
        tree = batch()
        before = backbone(tree)[0, -1]
        for column in (2, 5, len(layout()) - 2):
            changed = batch()
            changed.ids[0, column] = 33
            assert not torch.allclose(before, backbone(changed)[0, -1], atol=1e-4)

    def test_a_segment_below_depends_on_its_words_alone(self, backbone: LateBackbone) -> None:
        _, segments = backbone.cut(batch())
        tree = batch()
        first, again = segments.owner[0, tree.ids[0] == 9].tolist()[:2]
        assert first == again  # the same event twice is read once
        in_branch = segments.owner[0, -2]
        assert bool(segments.table.is_target[in_branch])
        assert in_branch != first  # and once more in the region of candidates


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_pooling_to_as_many_vectors_as_tokens_changes_nothing(tiny_backbone, model_type: str) -> None:
    tree = mixed()
    whole, pooled = late(tiny_backbone(model_type), 2), late(tiny_backbone(model_type), 2, "pooled", vectors=8)
    close(whole(tree)[tree.keep], pooled(tree)[tree.keep])


@pytest.mark.parametrize("vectors", [1, 2])
def test_pooled_vectors_are_means_of_stretches(tiny_backbone, vectors: int) -> None:
    backbone, tree = late(tiny_backbone("bert"), 2, "pooled", vectors), batch()
    _, segments = backbone.cut(tree)
    states = late(tiny_backbone("bert"), 2).alone(segments.table)
    for row, length in enumerate(segments.table.lengths.tolist()):
        stretches = [part.mean(0) for part in states[row, :length].tensor_split(min(vectors, length)) if len(part)]
        made = backbone.alone(segments.table)[row]
        if length % len(stretches) == 0:
            close(made[: len(stretches)], torch.stack(stretches))
        assert not made[len(stretches) :].any()


def test_segments_are_numbered_along_the_way() -> None:
    path = cut(batch()).path[0]
    tree = batch()
    assert path[tree.branches[0] == 0].tolist() == [0, 1, 1, 1, 2, 2, 3, 4, 4, 4]
    assert path[tree.branches[0] == 1].tolist() == [5, 6, 6, 6, 6, 7]
    assert path[tree.branches[0] == 2].tolist() == [3, 4, 4, 5]  # it hangs on block 1, behind three segments


def test_soft_prompts_are_segment_0_and_never_pooled(tiny_backbone) -> None:
    tuned = PromptTuner(PromptConfig(num_virtual_tokens=5)).attach(tiny_backbone("bert"))
    backbone = late(tuned, 1, "pooled")
    whole, segments = backbone.cut(batch())
    assert whole.segments[0, :6].tolist() == [0, 0, 0, 0, 0, 1]
    assert backbone.counts(segments.table)[segments.owner[0, 0]] == 5
    assert segments.path[0, 5] == 1


def test_the_table_of_indices_starts_at_zero_and_is_trained(tiny_backbone) -> None:
    backbone = LateBackbone(tiny_backbone("bert"), LateInteractionConfig(layers=2))
    assert not backbone.segment_embedding.weight.any()
    with torch.enable_grad():
        backbone(batch()).square().sum().backward()
    assert backbone.segment_embedding.weight.grad.abs().sum() > 0
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {"segment_embedding.weight"}


@pytest.mark.parametrize(("model_type", "alone"), [("bert", 0), ("t5", 0)])
def test_all_but_three_layers_by_default(tiny_backbone, model_type: str, alone: int) -> None:
    assert LateBackbone(tiny_backbone(model_type)).num_alone == alone


@pytest.mark.parametrize(("model_type", "limit"), [("bert", 3), ("t5", 2)])
def test_more_layers_than_there_are_are_refused(tiny_backbone, model_type: str, limit: int) -> None:
    with pytest.raises(BackboneError, match=f"got {limit + 1}, expected 0 to {limit}"):
        late(tiny_backbone(model_type), limit + 1)


def test_a_batch_without_segments_is_refused(tiny_backbone) -> None:
    with pytest.raises(BackboneError, match="without segments"):
        late(tiny_backbone("bert"), 1)(plain_batch([7, 8]))


def test_more_segments_than_indices_are_refused(tiny_backbone) -> None:
    backbone = LateBackbone(tiny_backbone("bert"), LateInteractionConfig(layers=1, max_segments=7))
    with pytest.raises(BackboneError, match="got 8 segments on the way to a candidate, expected at most 7"):
        backbone(batch())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_history_of_2000_events_is_refused(tiny_backbone, model_type: str) -> None:
    long = batch(layout([(0, [7]), *[(event, [8, 9]) for event in range(1, 2001)]], []))
    with pytest.raises(BackboneError, match="give the layout a budget"):
        late(tiny_backbone(model_type), 1)(long)


def test_scenes_are_refused(tiny_backbone) -> None:
    with pytest.raises(BackboneError, match="another tuner than iak"):
        late(TUNERS.load("iak")().attach(tiny_backbone("bert")), 1)


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected 1 or more"):
        LateInteractionConfig(vectors=0)


def test_rows_of_padding_and_empty_batches(tiny_backbone) -> None:
    backbone = late(tiny_backbone("bert"), 1)
    empty = layout([], [])
    assert backbone(batch(empty, layout())).isfinite().all()
    close(backbone(batch(empty, layout()))[1], backbone(batch())[0])


def test_saved_and_loaded_it_gives_the_same_states(tiny_backbone, tmp_path) -> None:
    first = late(tiny_backbone("bert"), 2)
    first.save(tmp_path)
    second = trained_late_interaction(tiny_backbone("bert"), LateInteractionConfig(layers=2), tmp_path)
    assert torch.equal(first(batch()), second(batch()))
    assert not any(parameter.requires_grad for parameter in second.parameters())


def test_going_on_from_an_adapter_takes_its_table_where_it_has_one(tiny_backbone, tmp_path) -> None:
    first, config = late(tiny_backbone("bert"), 2), LateInteractionConfig(layers=2)
    assert not with_late_interaction(tiny_backbone("bert"), config, tmp_path).segment_embedding.weight.any()
    first.save(tmp_path)
    again = with_late_interaction(tiny_backbone("bert"), config, tmp_path)
    assert torch.equal(again.segment_embedding.weight, first.segment_embedding.weight)
    assert again.segment_embedding.weight.requires_grad


def test_a_recipe_without_it_leaves_the_backbone_as_it_is(tiny_backbone, tmp_path) -> None:
    backbone = tiny_backbone("bert")
    assert with_late_interaction(backbone, None) is backbone
    assert trained_late_interaction(backbone, None, tmp_path) is backbone


@pytest.mark.parametrize(
    "config",
    [LateInteractionConfig(layers=1), LateInteractionConfig(layers=2, granularity="pooled"),
     LateInteractionConfig(layers=2, max_segments=64)],
)  # fmt: skip
def test_other_settings_than_trained_are_refused(tiny_backbone, tmp_path, config: LateInteractionConfig) -> None:
    late(tiny_backbone("bert"), 2).save(tmp_path)
    with pytest.raises(BackboneError, match="as it was trained"):
        LateBackbone(tiny_backbone("bert"), config).load(tmp_path)


def test_a_missing_or_damaged_file_is_told(tiny_backbone, tmp_path) -> None:
    backbone = late(tiny_backbone("bert"), 2)
    with pytest.raises(BackboneError, match="missing or damaged"):
        backbone.load(tmp_path)
    backbone.save(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:40])
    with pytest.raises(BackboneError, match="missing or damaged"):
        backbone.load(tmp_path)


def test_a_convolution_reads_plain_sequences_and_refuses_trees(tiny_backbone) -> None:
    backbone: Backbone = tiny_backbone("nextitnet")
    assert isinstance(backbone, NextItNetBackbone)
    assert late(backbone, 1)(batch(layout(TRUNK, []))).isfinite().all()
    with pytest.raises(BackboneError, match="plain sequence"):
        late(backbone, 1)(batch())
