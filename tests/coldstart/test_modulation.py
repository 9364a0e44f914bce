import numpy as np
import pytest
import torch

from m6rec.coldstart import modulation
from m6rec.coldstart.events import ColdBatch, first
from m6rec.coldstart.modulation import MARGINS, Modulated, ModulationConfig, SetEncoder, Structure
from m6rec.coldstart.search import closed, search, squared_error
from m6rec.errors import ConfigError
from m6rec.nn.modulation import OPS, modulate
from tests.coldstart.toy import batch, events, rows_of, table

SMALL = ModulationConfig(widths=(8,), embedding=6, hidden=16, dropout=0.0, num_gates=(1, 2))
ITEM = table().width + 2 + 2


def modulated(structure=None, config=SMALL, soft=False, seed=0):
    torch.manual_seed(seed)
    structure = structure or Structure.everything(config.positions)
    made = Modulated(config, structure, ITEM, 0, (3, 4), soft)
    made.layers[-1].weight.data.normal_(std=0.3)
    return made.eval()


class TestStructure:
    def test_controls(self):
        assert str(Structure.none(2)) == "- | -"
        assert str(Structure.everything(1)) == "max+min+mul+add"
        assert Structure.film(3).size == 6

    def test_top_and_random(self):
        scores = np.array([[0.1, 0.2, 0.9, 0.3], [0.8, 0.0, 0.0, 0.0]])
        assert str(Structure.top(scores, 2)) == "mul | max"
        drawn = {str(Structure.random(4, 4, np.random.default_rng(seed))) for seed in range(8)}
        assert len(drawn) == 8
        assert all(Structure.random(4, 4, np.random.default_rng(seed)).size == 4 for seed in range(8))

    def test_a_collapse_is_one_operation_everywhere(self):
        only = Structure(((False, False, True, False),) * 4)
        assert only.is_collapsed
        assert not Structure.film(4).is_collapsed
        assert not Structure.top(np.eye(4), 1).is_collapsed


class TestModulated:
    @pytest.mark.parametrize("op", OPS)
    def test_no_parameters_change_little_and_gradients_reach_them(self, op):
        hidden = 1.5 * torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0))
        p = torch.zeros(1, 1, 8, requires_grad=True)
        changed = modulate(hidden, op, (p + MARGINS[op]).expand_as(hidden))
        assert (changed - hidden).square().mean() < 0.05 * hidden.square().mean()
        changed.sum().backward()
        assert (p.grad != 0).sum() > 4

    def test_untrained_it_is_the_closed_form(self):
        torch.manual_seed(0)
        made, users = Modulated(SMALL, Structure.film(2), ITEM, 0, (3, 4)).eval(), batch(3)
        level = (users.support.values - users.support.base).sum(1) / (5 + 4)
        assert torch.allclose(made(table(), users), users.query.base + level[:, None])

    def test_many_users_at_once_are_each_alone(self):
        made, users = modulated(), batch(4)
        alone = [made(table(), rows_of(users, slice(row, row + 1))) for row in range(4)]
        assert torch.allclose(made(table(), users), torch.cat(alone), atol=1e-6)

    def test_no_support_is_the_predictor_itself(self):
        users = batch(3)
        nothing = ColdBatch(first(users.support, 0), users.query, users.profiles)
        whole, bare = modulated(), modulated(Structure.none(2))
        bare.load_state_dict(whole.state_dict() | {k: v for k, v in bare.state_dict().items() if "encoder" in k})
        within = whole(table(), nothing) - bare(table(), nothing)
        # Bounds of max and min cut only what lies two units out.
        assert within.abs().max() < 0.2
        film = modulated(Structure.film(2))
        bare.load_state_dict(film.state_dict() | {k: v for k, v in bare.state_dict().items() if "encoder" in k})
        assert torch.equal(film(table(), nothing), bare(table(), nothing))

    def test_the_order_of_the_support_does_not_matter(self):
        made, users = modulated(), batch(3)
        turned = type(users.support)(**{name: value.flip(1) for name, value in vars(users.support).items()})
        again = made(table(), ColdBatch(turned, users.query, users.profiles))
        assert torch.allclose(made(table(), users), again, atol=1e-6)

    def test_ten_thousand_events_are_no_more_than_events(self):
        found = modulated()(table(), ColdBatch(events(1, 10_000), events(1, 5), torch.zeros(1, 0)))
        assert torch.isfinite(found).all()
        assert found.abs().max() < 50

    def test_gradient_reaches_the_set_encoder_and_moves_it(self):
        made, users = modulated().train(), batch(8)
        before = made.encoder.event.weight.clone()
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        squared_error(made(table(), users), users).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in made.encoder.parameters())
        optimizer.step()
        assert not torch.equal(made.encoder.event.weight, before)

    def test_a_ladder_reads_the_lower_layers(self):
        config = ModulationConfig(widths=(8, 6), embedding=6, hidden=16, predictor="ladder")
        made, users, items = modulated(config=config), batch(2), table(layers=3)
        moved = items.texts.clone()
        moved[:, 0] += 1
        assert not torch.allclose(made(items, users), made(type(items)(moved, items.attributes), users))
        mlp = modulated(config=ModulationConfig(widths=(8, 6), embedding=6, hidden=16))
        assert torch.equal(mlp(items, users), mlp(type(items)(moved, items.attributes), users))

    def test_a_structure_of_other_positions(self):
        with pytest.raises(ConfigError, match="expected 2"):
            Modulated(SMALL, Structure.film(3), ITEM, 0, (1, 4))

    def test_a_set_encoder_of_nothing_gives_nothing(self):
        encoder = SetEncoder(3, 8, [2, 5])
        keep = torch.tensor([[False, False], [True, False]])
        found = encoder(torch.randn(2, 2, 3), keep)
        assert [part.shape for part in found] == [(2, 1, 2), (2, 1, 5)]
        assert not found[1][0].any()
        assert found[1][1].any()


def planted(operation, seed, items, num_users=32):
    """Users of whom each turns the items' hidden worth by a strength, or moves it by one, that her support shows."""
    users = batch(num_users, support=8, query=8, num_items=60, seed=seed)
    strength = torch.randn(num_users, 1, generator=torch.Generator().manual_seed(seed + 10_000))
    worth = items.features(torch.arange(60))[:, 0]

    def valued(part):
        inner = worth[part.places]
        values = inner * (1 + strength) if operation == "mul" else inner + strength
        return type(part)(**{**vars(part), "values": values, "base": torch.zeros_like(values)})

    return ColdBatch(valued(users.support), valued(users.query), users.profiles)


@pytest.mark.parametrize("operation", ["mul", "add"])
def test_a_search_selects_the_planted_operation(operation, monkeypatch):
    """One place, right before the output, and the two operations that could stand there."""
    items = table(num_items=60)
    config = ModulationConfig(widths=(4,), embedding=8, hidden=32, dropout=0.0, num_gates=(1,))
    structure = Structure(((False,) * 4, (False, False, True, True)))
    torch.manual_seed(1)
    supernet = Modulated(config, structure, ITEM, 0, (1, 4), soft=True)

    # The closed form's level would do half of the work of `add`.
    monkeypatch.setattr(modulation, "user_levels", lambda support: torch.zeros(len(support.values), 1))

    def train(epoch):
        return (planted(operation, 200 * epoch + step, items) for step in range(40))

    valid = [planted(operation, 50_000 + step, items) for step in range(3)]
    found = search(supernet, items, train, valid, config, epochs=2, lr=2e-2, gate_lr=4e-2)
    assert str(found.structure) == f"- | {operation}"
    assert not found.structure.is_collapsed


def test_validation_users_choose_among_sizes_and_the_gates_stay():
    items, supernet = table(num_items=60), modulated(soft=True)
    valid = [batch(6, num_items=60, seed=seed) for seed in range(2)]
    found = search(supernet, items, lambda epoch: [batch(6, num_items=60, seed=7)], valid, SMALL, epochs=2)
    assert set(found.losses) == {str(Structure.top(np.array(found.gates), size)) for size in SMALL.num_gates}
    assert found.losses[str(found.structure)] == min(found.losses.values())
    kept = supernet.gates.clone()
    closed(supernet, found.structure, items, valid)
    assert torch.equal(supernet.gates, kept)


def test_shut_gates_are_the_structure_alone():
    items, users = table(), batch(4)
    supernet, structure = modulated(soft=True), Structure.top(np.eye(2, 4), 2)
    alone = modulated(structure)
    weights = supernet.state_dict()
    places = [supernet.places.index(place) for place in alone.places]
    rows = torch.cat([weights["encoder.out"].split(supernet.encoder.sizes)[place] for place in places])
    shared = {name: value for name, value in weights.items() if name in alone.state_dict()}
    alone.load_state_dict(shared | {"encoder.out": rows})
    expected = squared_error(alone(items, users), users).item()
    assert closed(supernet, structure, items, [users]) == pytest.approx(expected, rel=1e-5)
