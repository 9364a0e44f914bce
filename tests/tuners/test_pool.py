"""Many adapters on one backbone: they share its weights, cannot touch each other, and a row may ask for any of them."""

import gc
import shutil
import threading
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from m6rec.backbones.base import Backbone
from m6rec.errors import SharedWeightsError, TunerError
from m6rec.tuners import TUNERS
from m6rec.tuners.files import CONTROL_FILE
from m6rec.tuners.lora import LoraConfig, LoraTuner
from m6rec.tuners.pool import AdapterPool, find_adapter, open_adapter, saved_tuner, skeleton
from tests.contracts.backbone_contract import TRUNK, close, plain_batch, stack
from tests.contracts.tuner_contract import states, train_step, tree

SHARING = sorted(set(TUNERS) - {"full"})
TRAINED = sorted(set(SHARING) - {"none"})


def save_adapter(name: str, backbone: Backbone, folder: Path, seed: int = 0) -> Path:
    """Save an adapter whose every trained number is off its start; ``backbone`` stays bare."""
    tuner = TUNERS.load(name)()
    tuner.attach(skeleton(backbone))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuner.parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    tuner.save(folder)
    return folder


@pytest.fixture
def backbone(tiny_backbone) -> Backbone:
    return tiny_backbone("bert")


@pytest.fixture
def folders(backbone, tmp_path) -> list[Path]:
    return [save_adapter("lora", backbone, tmp_path / f"lora{seed}", seed) for seed in range(4)]


@pytest.fixture
def row():
    return plain_batch(TRUNK, [20, 21])


def resident(pool: AdapterPool) -> set[str]:
    return {adapter.name for adapter in pool.list() if adapter.resident}


class TestSkeleton:
    @pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3", "t5"])
    def test_it_shares_every_weight_and_gives_the_same(self, tiny_backbone, model_type: str) -> None:
        backbone = tiny_backbone(model_type)
        other = skeleton(backbone)
        own = dict(other.named_parameters()) | dict(other.named_buffers())
        for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
            assert (own[name].data_ptr() == tensor.data_ptr()) == (name != "control"), name
        assert torch.equal(states(other, tree(backbone)), states(backbone, tree(backbone)))
        assert other.fingerprint == backbone.fingerprint
        assert other.model is not backbone.model

    @pytest.mark.parametrize("name", TRAINED)
    def test_training_one_adapter_leaves_another_and_the_bare_backbone_bit_equal(self, backbone, name: str) -> None:
        bare, batch = states(backbone, tree(backbone)), tree(backbone)
        one, two = TUNERS.load(name)(), TUNERS.load(name)()
        first, second = one.attach(skeleton(backbone)), two.attach(skeleton(backbone))
        before, weights = states(second, batch), {key: value.clone() for key, value in second.state_dict().items()}
        train_step(one, first, batch)
        assert not torch.equal(states(first, batch), before)
        assert torch.equal(states(second, batch), before)
        assert all(torch.equal(value, weights[key]) for key, value in second.state_dict().items())
        assert torch.equal(states(backbone, batch), bare)

    def test_a_backbone_that_carries_an_adapter_is_refused(self, backbone, folders) -> None:
        LoraTuner().attach(backbone)
        with pytest.raises(TunerError, match="detach its tuner first"):
            open_adapter(backbone, folders[0])
        backbone.requires_grad_(False)
        with pytest.raises(TunerError, match="detach the other tuner first"):
            open_adapter(backbone, folders[0])


class TestOpening:
    @pytest.mark.parametrize("name", SHARING)
    def test_a_folder_says_what_made_it(self, backbone, tmp_path, name: str) -> None:
        folder = save_adapter(name, backbone, tmp_path)
        tuner = saved_tuner(folder)
        assert isinstance(tuner, TUNERS.load(name))
        assert tuner.config == TUNERS.load(name)().config
        tuned = open_adapter(backbone, folder)
        plain = TUNERS.load(name)()
        expected = plain.attach(skeleton(backbone))
        plain.load(folder)
        batch = tree(backbone)
        assert torch.equal(states(tuned, batch), states(expected.eval(), batch))
        assert not any(parameter.requires_grad for parameter in [*tuned.parameters(), *backbone.parameters()])

    def test_settings_are_kept(self, backbone, tmp_path) -> None:
        tuner = LoraTuner(LoraConfig(rank=3, targets=("query", "key")))
        tuner.attach(skeleton(backbone))
        tuner.save(tmp_path)
        assert saved_tuner(tmp_path).config == LoraConfig(rank=3, targets=("query", "key"))
        open_adapter(backbone, tmp_path)

    def test_an_adapter_from_before_settings_were_written_opens_with_the_defaults(self, backbone, folders) -> None:
        rewrite_card(folders[0], settings=None)
        assert saved_tuner(folders[0]).config == LoraConfig()
        open_adapter(backbone, folders[0])

    def test_a_run_holds_its_adapter_in_a_folder_of_its_own(self, folders, tmp_path) -> None:
        shutil.copytree(folders[0], tmp_path / "run" / "adapter")
        assert find_adapter(tmp_path / "run") == tmp_path / "run" / "adapter"
        assert find_adapter(folders[0]) == folders[0]
        with pytest.raises(TunerError, match="expected a folder that a tuner has saved"):
            find_adapter(tmp_path / "nothing")

    def test_full_fine_tuning_is_refused_where_weights_are_shared(self, backbone, tmp_path) -> None:
        tuner = TUNERS.load("full")()
        tuner.attach(backbone)
        tuner.save(tmp_path)
        tuner.detach()
        before = states(backbone, tree(backbone))
        with pytest.raises(SharedWeightsError, match="on a backbone of its own"):
            AdapterPool(backbone).load("full", tmp_path)
        assert torch.equal(states(backbone, tree(backbone)), before)
        assert not any(parameter.requires_grad for parameter in backbone.parameters())

    def test_an_unknown_tuner(self, backbone, folders) -> None:
        rewrite_card(folders[0], method="lorra")
        with pytest.raises(TunerError, match=r"unknown tuner 'lorra'.*did you mean lora.*install the package"):
            AdapterPool(backbone).load("a", folders[0])

    def test_settings_that_are_not_the_tuners(self, backbone, folders) -> None:
        rewrite_card(folders[0], settings='{"rnk": 3}')
        with pytest.raises(TunerError, match="did you mean rank"):
            AdapterPool(backbone).load("a", folders[0])
        rewrite_card(folders[0], settings="{")
        with pytest.raises(TunerError, match="damaged"):
            AdapterPool(backbone).load("a", folders[0])

    def test_another_base_model_or_hidden_size(self, tiny_backbone, folders) -> None:
        other = tiny_backbone("bert")
        with torch.no_grad():
            next(other.model.parameters())[0, 0] += 1e-3
        for stranger in (other, tiny_backbone("gpt2")):
            pool = AdapterPool(stranger)
            with pytest.raises(TunerError, match="load the backbone that the adapter was trained on"):
                pool.load("a", folders[0])
            assert pool.list() == ()

    @pytest.mark.parametrize("file", [CONTROL_FILE, "adapter_model.safetensors"])
    def test_a_truncated_file(self, backbone, folders, file: str) -> None:
        path = folders[0] / file
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(TunerError, match="damaged"):
            AdapterPool(backbone).load("a", folders[0])


class TestMixedBatch:
    @pytest.mark.parametrize("name", SHARING)
    def test_a_row_of_its_own_adapter_equals_the_row_alone(self, backbone, tmp_path, name: str) -> None:
        pool = AdapterPool(backbone)
        for seed, one in enumerate("ab"):
            pool.load(one, save_adapter(name, backbone, tmp_path / one, seed))
        rows = [tree(backbone).take(torch.tensor([0])), plain_batch([7, 8], [20]), plain_batch(TRUNK, [20, 21])] * 2
        self.check(pool, rows, ["a", None, "b", "b", "a", None])
        assert torch.equal(pool.get("a").control, pool.get("b").control) == (name == "none")

    @pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
    def test_every_tuner_of_the_shelf_in_one_batch(self, tiny_backbone, tmp_path, model_type: str) -> None:
        backbone = tiny_backbone(model_type)
        pool = AdapterPool(backbone, capacity=len(TUNERS))
        for name in SHARING:
            try:
                pool.load(name, save_adapter(name, backbone, tmp_path / name))
            except TunerError:
                assert name not in pool  # a method that says it cannot work on this family
        names = [*(adapter.name for adapter in pool.list()), None]
        assert len(names) > len(SHARING) // 2
        self.check(pool, [plain_batch(TRUNK, [20, 21])] * len(names), names)

    def check(self, pool: AdapterPool, rows: list, names: list) -> None:
        batch = stack(*rows)
        with torch.no_grad():
            together = pool.forward(batch, names)
            words = pool.logits(together, names)
        for place, (row, name) in enumerate(zip(rows, names, strict=True)):
            tuned = pool.backbone if name is None else pool.get(name)
            alone = states(tuned, row)
            close(together[place : place + 1, : row.ids.shape[1]], alone)
            close(words[place : place + 1, : row.ids.shape[1]], tuned.logits(alone))

    def test_one_name_a_row(self, backbone, folders, row) -> None:
        pool = AdapterPool(backbone)
        pool.load("a", folders[0])
        with pytest.raises(TunerError, match="2 adapter names for a batch of 1 rows"):
            pool.forward(row, ["a", "a"])
        with pytest.raises(TunerError, match="did you mean a"):
            pool.forward(row, ["A"])

    def test_a_batch_may_ask_for_more_than_fit(self, backbone, folders, row) -> None:
        pool = AdapterPool(backbone, capacity=1)
        for name, folder in zip("abcd", folders, strict=True):
            pool.load(name, folder)
        self.check(pool, [row] * 4, list("abcd"))


class TestPool:
    def test_adapters_share_the_backbones_memory(self, backbone, folders) -> None:
        pool = AdapterPool(backbone)
        own = {parameter.data_ptr() for parameter in backbone.parameters()} - {backbone.control.data_ptr()}
        for name, folder in zip("ab", folders, strict=False):
            found = {parameter.data_ptr() for parameter in pool.load(name, folder).parameters()}
            assert own < found
        for adapter in pool.list():
            assert adapter.num_parameters == 3 * 2 * 2 * 8 * 32 + 4 * 32  # layers, q and v, A and B, rank, width

    def test_unloading_frees_what_was_its_own(self, backbone, folders) -> None:
        pool = AdapterPool(backbone)
        tuned = pool.load("a", folders[0])
        tracked = [weakref.ref(p) for p in tuned.parameters() if p not in set(backbone.parameters())]
        pool.unload("a")
        assert all(ref() is not None for ref in tracked)  # a request still holds it
        del tuned
        gc.collect()
        assert tracked
        assert not any(ref() for ref in tracked)
        assert "a" not in pool
        with pytest.raises(TunerError, match="does not know"):
            pool.get("a")

    def test_the_one_asked_for_longest_ago_goes_and_comes_back(self, backbone, folders, row) -> None:
        pool = AdapterPool(backbone, capacity=2)
        first = states(pool.load("a", folders[0]), row)
        pool.load("b", folders[1])
        pool.get("a")
        pool.load("c", folders[2])
        assert resident(pool) == {"a", "c"}
        assert [adapter.name for adapter in pool.list()] == ["a", "b", "c"]
        pool.get("b")
        assert resident(pool) == {"b", "c"}
        assert torch.equal(states(pool.get("a"), row), first)

    def test_a_pinned_one_stays(self, backbone, folders) -> None:
        pool = AdapterPool(backbone, capacity=2)
        pool.load("a", folders[0], pin=True)
        for name, folder in zip("bcd", folders[1:], strict=True):
            pool.load(name, folder)
        assert resident(pool) == {"a", "d"}
        pool.pin("b")
        assert resident(pool) == {"a", "b"}
        with pytest.raises(TunerError, match=r"2 places are all pinned \(a, b\)"):
            pool.get("c")
        with pytest.raises(TunerError, match="all pinned"):
            pool.pin("c")
        pool.pin("a", False)
        pool.get("c")
        assert resident(pool) == {"b", "c"}
        shutil.rmtree(folders[3])
        with pytest.raises(TunerError, match="missing"):
            pool.pin("d")
        assert {adapter.name for adapter in pool.list() if adapter.pinned} == {"b"}

    def test_a_name_that_is_taken_is_replaced_once_the_new_one_is_whole(self, backbone, folders, row) -> None:
        pool = AdapterPool(backbone)
        before = states(pool.load("a", folders[0]), row)
        (folders[1] / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(TunerError, match="damaged"):
            pool.load("a", folders[1])
        assert torch.equal(states(pool.get("a"), row), before)
        pool.load("a", folders[2])
        assert not torch.equal(states(pool.get("a"), row), before)
        assert len(pool.list()) == 1

    def test_an_evicted_one_whose_folder_is_gone(self, backbone, folders) -> None:
        pool = AdapterPool(backbone, capacity=1)
        pool.load("a", folders[0])
        pool.load("b", folders[1])
        shutil.rmtree(folders[0])
        with pytest.raises(TunerError, match="missing"):
            pool.get("a")
        assert resident(pool) == {"b"}

    def test_a_pool_without_a_place(self, backbone) -> None:
        with pytest.raises(TunerError, match="capacity: got 0"):
            AdapterPool(backbone, capacity=0)

    def test_any_thread_may_ask_for_any_adapter(self, backbone, folders, row) -> None:
        expected = {name: states(open_adapter(backbone, folders[place]), row) for place, name in enumerate("abcd")}
        pool = AdapterPool(backbone, capacity=2)
        for name, folder in zip("abcd", folders, strict=True):
            pool.load(name, folder)
        wrong: list[str] = []

        def ask(shift: int) -> None:
            for turn in range(12):
                name = "abcd"[(turn * 3 + shift) % 4]
                if not torch.equal(states(pool.get(name), row), expected[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=ask, args=(shift,)) for shift in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(resident(pool)) == 2


def rewrite_card(folder: Path, **changes: str | None) -> None:
    """Change entries of an adapter's card; ``None`` removes one."""
    from safetensors import safe_open

    path = folder / CONTROL_FILE
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        card = {**file.metadata(), **changes}
    save_file(tensors, path, metadata={name: value for name, value in card.items() if value is not None})
