"""Stop at a layer: full depth is the plain model, what leaves leaves everyone else's answer as it was."""

from dataclasses import replace

import pytest
import torch

from m6rec.compressors.exit_config import ExitConfig
from m6rec.compressors.exit_policy import Judge
from m6rec.compressors.exits import ExitingBackbone, ExitTask, exit_weights, load_exits, save_exits
from m6rec.errors import BackboneError, ConfigError, RunError
from m6rec.text.batch import branch_ends
from m6rec.tuners import TUNERS
from tests.contracts.backbone_contract import BLOCKS, BRANCHES, TRUNK, close, plain_batch, stack, tree_batch

BATCH = stack(
    tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch([7, 8, 9], [20, 21]), tree_batch([], [], [(0, [20, 21, 22])])
)
ROWS, COLUMNS = branch_ends(BATCH)


def exiting(backbone, **settings) -> ExitingBackbone:
    """Return a backbone whose exits say something different at every layer."""
    made = ExitingBackbone(backbone, ExitConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.exits.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return made


@pytest.fixture(params=["bert", "gpt2", "llama"])
def backbone(tiny_backbone, request):
    return tiny_backbone(request.param)


@pytest.fixture
def head():
    weight = torch.randn(32, 2, generator=torch.Generator().manual_seed(3)) * 0.2
    return lambda states, points: states @ weight


@pytest.fixture(autouse=True)
def _no_gradients(request):
    with torch.set_grad_enabled("make" in request.fixturenames):
        yield


def test_full_depth_is_the_plain_model(backbone, head):
    made = exiting(backbone)
    assert torch.equal(made(BATCH), backbone(BATCH))
    assert torch.equal(made.classify(BATCH, ROWS, COLUMNS, head), backbone.classify(BATCH, ROWS, COLUMNS, head))


def test_a_budget_is_a_shorter_walk_and_its_exit(backbone):
    made = exiting(backbone, depth=2)
    close(made(BATCH), made.exits[1](backbone(BATCH, range(2))))


def test_every_depth_from_one_walk(backbone):
    made = exiting(backbone)
    for depth, states in enumerate(made.every_depth(BATCH), start=1):
        made.set(ExitConfig(depth=depth))
        close(states, made(BATCH))


@pytest.mark.parametrize("tuner", ["prompt", "prefix", "option-adapter"])
def test_under_a_tuner(tiny_backbone, head, tuner):
    kind = TUNERS.load(tuner)
    tuned = kind(kind.Config(num_virtual_tokens=3)).attach(tiny_backbone("bert"))
    made = exiting(tuned, policy="patience", threshold=0.0)
    close(made.every_depth(BATCH)[-1], tuned(BATCH))
    close(made.classify(BATCH, ROWS, COLUMNS, head), tuned.classify(BATCH, ROWS, COLUMNS, head))


POLICIES = [
    {"policy": "entropy", "threshold": 0.7},
    {"policy": "margin", "threshold": 0.6},
    {"policy": "patience", "threshold": 0.2},
    {"policy": "order", "top": 2},
    {"policy": "margin", "threshold": 0.6, "unit": "row"},
]


@pytest.mark.parametrize("settings", POLICIES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_who_leaves_changes_nobody_elses_answer(backbone, head, settings):
    """The same answers as when all are run to the end, and each is read where the policy lets it go."""
    made = exiting(backbone, **settings)
    found = made.classify(BATCH, ROWS, COLUMNS, head)
    at = [head(states[ROWS, COLUMNS], None) for states in made.every_depth(BATCH)]
    judge, points, left = Judge(made.config, ROWS), torch.arange(len(ROWS)), torch.zeros(len(ROWS), dtype=torch.long)
    for depth, logits in enumerate(at, start=1):
        leaving = judge.leave(points, logits[points]) if depth < len(at) else points >= 0
        left[points[leaving]], points = depth, points[~leaving]
    close(found, torch.stack([at[depth - 1][point] for point, depth in enumerate(left.tolist())]))
    assert made.left == torch.bincount(left, minlength=4)[1:].tolist()


def test_something_leaves_early_and_something_late(tiny_backbone, head):
    made = exiting(tiny_backbone("bert"), policy="margin", threshold=0.6)
    made.classify(BATCH, ROWS, COLUMNS, head)
    assert sum(count > 0 for count in made.left) > 1
    assert sum(made.left) == len(ROWS)


def test_nobody_leaves_before_the_first_exit_nor_after_the_last(tiny_backbone, head):
    made = exiting(tiny_backbone("bert"), policy="margin", threshold=0.0, first=2)
    made.classify(BATCH, ROWS, COLUMNS, head)
    assert made.left == [0, len(ROWS), 0]
    made = exiting(tiny_backbone("bert"), policy="margin", threshold=1.0, depth=2)
    made.classify(BATCH, ROWS, COLUMNS, head)
    assert made.left == [0, len(ROWS), 0]


def test_what_has_left_is_not_computed(tiny_backbone, head):
    made = exiting(tiny_backbone("bert"), policy="margin", threshold=0.6)
    sizes = []
    layer = made.inner.layer
    made.inner.layer = lambda index, hidden, *rest: sizes.append(hidden.shape[:2]) or layer(index, hidden, *rest)
    made.classify(BATCH, ROWS, COLUMNS, head)
    tokens = [rows * columns for rows, columns in sizes]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] < tokens[0]


def test_the_order_of_a_list_is_settled_for_the_list_as_a_whole():
    judge = Judge(ExitConfig(policy="order", top=2), torch.tensor([0, 0, 0, 1, 1]))
    everyone = torch.arange(5)

    def says(*yes):
        return torch.stack([torch.zeros(len(yes)), torch.tensor(yes)], dim=1)

    assert not judge.leave(everyone, says(3.0, 2.0, 1.0, 1.0, 2.0)).any()
    assert judge.leave(everyone, says(2.5, 2.0, 1.9, 2.0, 1.0)).tolist() == [True] * 3 + [False] * 2
    assert judge.leave(everyone[3:], says(2.0, 1.0)).all()


def test_patience_counts_layers_in_a_row():
    judge = Judge(ExitConfig(policy="patience", patience=2, threshold=0.1), torch.zeros(1, dtype=torch.long))
    answers = [[0.0, 3.0], [0.0, 3.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]]
    left = [bool(judge.leave(torch.tensor([0]), torch.tensor([answer]))) for answer in answers]
    assert left == [False, False, False, False, True]


def test_the_rising_weights_sum_to_one_and_the_printed_ones_do_not():
    assert sum(exit_weights(24, "rising")) == pytest.approx(1)
    assert sum(exit_weights(24, "printed")) == pytest.approx(5.63, abs=0.01)  # as the spec reckons


def test_the_loss_is_the_weighted_sum_over_depths(make):
    experiment = make("ranking", "exits.weights=printed")
    task = ExitTask(experiment.task, experiment.recipe.exits)
    backbone = experiment.backbone.eval()
    batch = task.collate([task.examples()[0], task.examples()[1]])
    found, wanted = task.loss(backbone, batch), 0.0
    for depth, weight in enumerate(exit_weights(3, "printed"), start=1):
        backbone.set(ExitConfig(depth=depth))
        loss = experiment.task.loss(backbone, batch)
        assert found.figures[f"loss_{depth}"] == pytest.approx(loss.value.item(), rel=1e-5)
        wanted += weight * loss.value.item()
    assert found.value.item() == pytest.approx(wanted, rel=1e-5)


def test_every_exit_learns(make):
    experiment = make("ranking", "exits.policy=never")
    task = ExitTask(experiment.task, experiment.recipe.exits)
    torch.nn.init.normal_(experiment.task.head.weight)
    task.loss(experiment.backbone.train(), task.collate([task.examples()[0]])).value.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in experiment.backbone.exits.parameters())


def test_kept_and_read_again(tiny_backbone, tmp_path):
    made = exiting(tiny_backbone("bert"))
    save_exits(made, tmp_path)
    again = load_exits(tiny_backbone("bert"), replace(made.config, depth=1), tmp_path)
    made.set(again.config)
    assert torch.equal(made(BATCH), again(BATCH))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    (tmp_path / "exits.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunError, match="exits"):
        load_exits(tiny_backbone("bert"), made.config, tmp_path)


def test_a_depth_beyond_the_model(tiny_backbone):
    with pytest.raises(ConfigError, match=r"depth: got 4, expected at most 3"):
        ExitingBackbone(tiny_backbone("bert"), ExitConfig(depth=4))


@pytest.mark.parametrize(
    "settings", [{"depth": 0}, {"threshold": 1.5}, {"patience": 0}, {"top": 0}, {"first": 3, "depth": 2}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="expected"):
        ExitConfig(**settings)


def test_an_encoder_decoder_is_refused(tiny_backbone):
    with pytest.raises(BackboneError, match="expected an encoder or a decoder"):
        ExitingBackbone(tiny_backbone("t5"), ExitConfig())
