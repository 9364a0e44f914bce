import pytest
import torch

from m6rec.api import load
from m6rec.assemble import build, open_experiment, train_run
from m6rec.coldstart.conditioned import choose, gates_of, tuner_words
from m6rec.coldstart.modulation import Structure, user_levels
from m6rec.errors import ConfigError
from m6rec.training.loop import train
from tests.coldstart.test_users import recipe

LM = [
    *("task.method=modulation", "task.modulation.predictor=lm", "task.queries=3", "task.draws=1"),
    *("tuner.name=conditioned", "training.max_steps=3", "training.lr=1e-2"),
    *("training.evaluate_every=null", "training.evaluate_first=false", "training.select_on=null"),
]


@pytest.fixture
def supernet(shop, tiny_folder, tmp_path):
    words = [*LM, 'tuner.ops=["max+min+mul+add"]', "tuner.gated=true"]
    return build(recipe(shop, tiny_folder, tmp_path / "net", *words))


def predicted(experiment, batch):
    return experiment.task._predict(experiment.backbone, batch, experiment.task.known.table)


def some(experiment, size=3):
    return next(iter(experiment.task.asked("valid", size)))


def test_untrained_it_is_the_closed_form(supernet):
    batch = some(supernet)
    expected = (batch.query.base + user_levels(batch.support)) * batch.query.keep
    assert torch.allclose(predicted(supernet, batch) * batch.query.keep, expected, atol=1e-5)


def test_events_reach_the_layers_and_gradient_comes_back(supernet):
    task, backbone = supernet.task, supernet.backbone
    train(task, backbone, supernet.recipe.training, supernet.recipe.out)
    batch = some(supernet)
    turned = type(batch.support)(**{**vars(batch.support), "taste": -batch.support.taste})
    other = type(batch)(turned, batch.query, batch.profiles)
    assert not torch.allclose(predicted(supernet, batch), predicted(supernet, other), atol=1e-5)
    task.loss(backbone, batch).value.backward()
    assert task.predictor.encoder.event.weight.grad.abs().sum() > 0
    assert all(gate.grad is not None for gate in gates_of(backbone).gates.values())


def test_users_of_a_batch_are_read_under_their_own_conditions(supernet):
    train(supernet.task, supernet.backbone, supernet.recipe.training, supernet.recipe.out)
    from tests.coldstart.toy import rows_of

    batch = some(supernet)
    whole = predicted(supernet, batch)
    for row in range(len(whole)):
        alone = predicted(supernet, rows_of(batch, slice(row, row + 1)))
        assert torch.allclose(whole[row], alone[0], atol=1e-4)


def test_the_choice_is_by_the_loss_and_leaves_the_gates(supernet):
    change = gates_of(supernet.backbone)
    for number, gate in enumerate(change.gates.values()):
        gate.data.fill_(0.1 * number)
    before = {name: gate.item() for name, gate in change.gates.items()}

    def loss():
        return -float(sum(torch.isposinf(gate) for gate in change.gates.values()))

    assert choose(supernet.backbone, (1, 3, 2), loss).size == 3
    assert {name: gate.item() for name, gate in change.gates.items()} == before
    # The most open gates are those of the last layer.
    assert not any(choose(supernet.backbone, (2,), loss).gates[0])


def test_a_chosen_structure_is_retrained_saved_and_served(shop, tiny_folder, tmp_path):
    structure = Structure(((False, False, True, False), (False,) * 4, (False,) * 4))
    train_run(recipe(shop, tiny_folder, tmp_path / "run", *LM, tuner_words(structure)))
    experiment, recommender = open_experiment(tmp_path / "run"), load(tmp_path / "run")
    keys = recommender.run.task.catalogue.keys
    batch = some(experiment)
    assert torch.isfinite(predicted(experiment, batch)).all()
    liked, hated = ([{"item": keys[0], "value": value}] * 3 for value in (5, 1))
    scores = [[each.score for each in recommender.recommend(history, k=5)] for history in (liked, hated)]
    assert scores[0] != scores[1]


def test_a_backbone_without_gates_says_what_to_set(shop, tiny_folder, tmp_path):
    plain = build(recipe(shop, tiny_folder, tmp_path / "run", *LM))
    with pytest.raises(ConfigError, match=r"tuner.gated=true"):
        gates_of(plain.backbone)
