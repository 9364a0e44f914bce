"""What every tuner must keep. Inherit, name the tuner, and say what its method promises."""

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.text.batch import TokenBatch
from m6rec.tuners import TUNERS
from m6rec.tuners.base import Tuner
from m6rec.tuners.state import trained_share
from tests.contracts.backbone_contract import BLOCKS, BRANCHES, TRUNK, close, plain_batch, stack, tree_batch


def tree(backbone: Backbone) -> TokenBatch:
    """Return two rows, control tokens among their ids."""
    begin, end = backbone.first_control, backbone.first_control + 1
    return stack(tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch([begin, 8, 9, end], [begin + 2, 21, begin + 3]))


def train_step(tuner: Tuner, tuned: Backbone, batch: TokenBatch) -> None:
    """Take one large step on everything that is trained."""
    optimizer = torch.optim.SGD(tuner.parameters().values(), lr=0.5)
    loss = tuned(batch)[batch.keep].pow(2).mean() - tuned(batch)[batch.keep][:, 0].mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def states(backbone: Backbone, batch: TokenBatch) -> torch.Tensor:
    return backbone(batch)


class TunerContract:
    """The promises of the protocol."""

    name: ClassVar[str]
    """Shelf name."""
    identity: ClassVar[bool] = True
    """Whether the tuned backbone starts equal to the bare one."""
    trains: ClassVar[bool] = True
    """Whether the method trains anything in the backbone."""
    freezes: ClassVar[bool] = True
    """Whether the pretrained weights stay as they are."""
    settings: ClassVar[dict[str, Any]] = {}
    """Settings other than the defaults, for the test of settings that do not match."""

    @pytest.fixture
    def backbone(self) -> Backbone:
        raise NotImplementedError

    def tuner(self, **settings: Any) -> Tuner:
        cls = TUNERS.load(self.name)
        return cls(cls.Config(**settings))

    def test_keeps_the_protocol(self, backbone: Backbone) -> None:
        tuner = self.tuner()
        assert isinstance(tuner, Tuner)
        tuned = tuner.attach(backbone)
        assert isinstance(tuned, Backbone)
        assert (tuned.family, tuned.hidden_size, tuned.num_layers) == (
            backbone.family,
            backbone.hidden_size,
            backbone.num_layers,
        )
        assert tuned.fingerprint == backbone.fingerprint
        assert tuned.logits(tuned(tree(backbone))).shape == (*tree(backbone).ids.shape, len(backbone.tokenizer))

    def test_starts_as_the_frozen_model_where_it_promises_to(self, backbone: Backbone) -> None:
        before = states(backbone, tree(backbone))
        after = states(self.tuner().attach(backbone), tree(backbone))
        assert torch.allclose(before, after, atol=1e-5) == self.identity

    def test_lists_what_is_trained_and_nothing_else(self, backbone: Backbone) -> None:
        tuner = self.tuner()
        tuned = tuner.attach(backbone)
        trained = {id(parameter) for parameter in tuned.parameters() if parameter.requires_grad}
        assert {id(parameter) for parameter in tuner.parameters().values()} == trained
        assert (id(backbone.control) in trained) == bool(trained) == self.trains
        share = trained_share(tuned)
        assert share.trained == sum(parameter.numel() for parameter in tuner.parameters().values())
        assert share.total >= sum(parameter.numel() for parameter in backbone.model.parameters())

    def test_trains_and_leaves_the_frozen_weights_bit_equal(self, backbone: Backbone) -> None:
        frozen = {name: weight.clone() for name, weight in backbone.model.named_parameters()}
        control = backbone.control.clone()
        tuner = self.tuner()
        tuned = tuner.attach(backbone)
        if not self.trains:
            assert not tuned(tree(backbone)).requires_grad
            return
        before = states(tuned, tree(backbone))
        train_step(tuner, tuned, tree(backbone))
        assert not torch.allclose(before, states(tuned, tree(backbone)))
        assert not torch.equal(control, backbone.control)
        if self.freezes:
            bare = {name.replace(".base_layer", ""): weight for name, weight in backbone.model.named_parameters()}
            assert all(torch.equal(weight, bare[name]) for name, weight in frozen.items())

    def test_every_trained_parameter_gets_a_gradient(self, backbone: Backbone) -> None:
        tuner = self.tuner()
        tuned = tuner.attach(backbone).train()
        batch = tree(backbone)
        if self.trains:
            hidden = tuned(batch)[batch.keep]
            ((hidden * torch.randn(backbone.hidden_size)).sum() + tuned.logits(hidden).logsumexp(-1).sum()).backward()
        assert not [name for name, parameter in tuner.parameters().items() if parameter.grad is None]

    def test_saves_and_loads_equal(self, backbone: Backbone, tmp_path: Path) -> None:
        other = copy.deepcopy(backbone)
        tuner, fresh = self.tuner(), self.tuner()
        tuned, reloaded = tuner.attach(backbone), fresh.attach(other)
        if self.trains:
            train_step(tuner, tuned, tree(backbone))
        tuner.save(tmp_path)
        fresh.load(tmp_path)
        close(states(reloaded, tree(backbone)), states(tuned, tree(backbone)))
        assert torch.equal(other.control, backbone.control)
        fresh.save(tmp_path / "again")
        tuner.load(tmp_path / "again")
        close(states(reloaded, tree(backbone)), states(tuned, tree(backbone)))

    def test_trains_on_after_loading(self, backbone: Backbone, tmp_path: Path) -> None:
        tuner = self.tuner()
        tuned = tuner.attach(backbone)
        tuner.save(tmp_path)
        tuner.load(tmp_path)
        if self.trains:
            before = states(tuned, tree(backbone))
            train_step(tuner, tuned, tree(backbone))
            assert not torch.allclose(before, states(tuned, tree(backbone)))

    def test_detach_restores_exactly(self, backbone: Backbone) -> None:
        before, weights = states(backbone, tree(backbone)), copy.deepcopy(backbone.state_dict())
        flags = [parameter.requires_grad for parameter in backbone.parameters()]
        tuner = self.tuner()
        tuned = tuner.attach(backbone)
        if self.trains:
            train_step(tuner, tuned, tree(backbone))
        restored = tuner.detach()
        assert restored is backbone
        assert torch.equal(states(restored, tree(backbone)), before)
        after = restored.state_dict()
        assert list(after) == list(weights)
        assert all(torch.equal(after[name], weight) for name, weight in weights.items())
        assert [parameter.requires_grad for parameter in restored.parameters()] == flags
        self.tuner().attach(restored)

    def test_batched_equals_single(self, backbone: Backbone) -> None:
        tuned = self.tuner().attach(backbone)
        rows = [tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch([7, 8], [20]), tree_batch([], [], [(0, [20, 21])])]
        together = states(tuned, stack(*rows))
        for i, row in enumerate(rows):
            close(together[i : i + 1, : row.ids.shape[1]], states(tuned, row))

    def test_a_branch_in_a_tree_equals_trunk_and_branch_alone(self, backbone: Backbone) -> None:
        tuned = self.tuner().attach(backbone)
        whole, (block, tokens) = states(tuned, tree_batch(TRUNK, BLOCKS, BRANCHES)), BRANCHES[-1]
        close(whole[:, -len(tokens) :], states(tuned, tree_batch(TRUNK, BLOCKS, [(block, tokens)]))[:, -len(tokens) :])

    def test_bfloat16_autocast(self, backbone: Backbone) -> None:
        tuned = self.tuner().attach(backbone)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert states(tuned, tree(backbone)).isfinite().all()

    def test_refuses_the_adapter_of_another_base_model(self, backbone: Backbone, tmp_path: Path) -> None:
        other = copy.deepcopy(backbone)
        with torch.no_grad():
            next(other.model.parameters())[0, 0] += 1e-3
        tuner, fresh = self.tuner(), self.tuner()
        tuner.attach(backbone)
        tuner.save(tmp_path)
        fresh.attach(other)
        with pytest.raises(TunerError, match="load the backbone that the adapter was trained on"):
            fresh.load(tmp_path)

    def test_refuses_damaged_files_and_changes_nothing(self, backbone: Backbone, tmp_path: Path) -> None:
        tuner = self.tuner()
        tuned = tuner.attach(backbone)
        tuner.save(tmp_path)
        if self.trains:
            train_step(tuner, tuned, tree(backbone))
        before = states(tuned, tree(backbone))
        for path in sorted(tmp_path.glob("*.safetensors")):
            whole = path.read_bytes()
            path.write_bytes(whole[:-9])
            with pytest.raises(TunerError, match="damaged"):
                tuner.load(tmp_path)
            path.unlink()
            with pytest.raises(TunerError, match="missing"):
                tuner.load(tmp_path)
            path.write_bytes(whole)
        assert torch.equal(states(tuned, tree(backbone)), before)

    def test_refuses_other_settings(self, backbone: Backbone, tmp_path: Path) -> None:
        if not self.settings:
            pytest.skip("the method has no setting that changes what is saved")
        other = copy.deepcopy(backbone)
        tuner, fresh = self.tuner(), self.tuner(**self.settings)
        tuner.attach(backbone)
        tuner.save(tmp_path)
        fresh.attach(other)
        with pytest.raises(TunerError, match="other settings"):
            fresh.load(tmp_path)

    def test_refuses_the_files_of_another_method(self, backbone: Backbone, tmp_path: Path) -> None:
        stranger = TUNERS.load("full" if self.name == "none" else "none")()
        stranger.attach(copy.deepcopy(backbone))
        stranger.save(tmp_path)
        tuner = self.tuner()
        tuner.attach(backbone)
        with pytest.raises(TunerError, match="of method"):
            tuner.load(tmp_path)

    def test_unattached_says_so(self, tmp_path: Path) -> None:
        for act in (lambda t: t.save(tmp_path), lambda t: t.load(tmp_path), lambda t: t.detach()):
            with pytest.raises(TunerError, match="not attached"):
                act(self.tuner())
