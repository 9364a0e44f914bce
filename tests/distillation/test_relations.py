"""Relations: a teacher held against itself is no loss; gradients reach the student alone."""

import pytest
import torch

from m6rec.assemble import build
from m6rec.backbones.resolve import resolve_backbone
from m6rec.distillation.losses import relation_loss
from m6rec.distillation.relations import RelationConfig, RelationTask, listening
from m6rec.errors import BackboneError
from m6rec.recipe import read_recipe
from tests.little_shop import SMALL


def test_it_is_the_papers_formula():
    teacher, student = torch.randn(2, 5, 12), torch.randn(2, 5, 8)
    found = relation_loss(teacher, student, torch.zeros(2, 1, 5, 5), 4)
    total = 0.0
    for row in range(2):
        for head in range(4):
            ours = teacher[row, :, 3 * head : 3 * head + 3]
            theirs = student[row, :, 2 * head : 2 * head + 2]
            p, q = (torch.softmax(a @ a.T / a.shape[1] ** 0.5, -1) for a in (ours, theirs))
            total += float((p * (p / q).log()).sum())
    assert float(found) == pytest.approx(total / (2 * 4 * 5), rel=1e-4)


def test_what_nobody_sees_is_not_counted():
    teacher, student = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    hidden = torch.zeros(1, 1, 4, 4)
    hidden[..., 3] = torch.finfo(torch.float32).min
    wanted = relation_loss(teacher[:, :3], student[:, :3], torch.zeros(1, 1, 3, 3), 2)
    torch.testing.assert_close(relation_loss(teacher, student, hidden, 2), wanted)


@pytest.fixture
def experiment(shop, tiny_folder, tmp_path):
    words = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", "tuner.name=full"]
    return build(read_recipe("ranking", [*words, *SMALL["ranking"]]))


def test_a_student_learns_from_its_teacher_alone(experiment, tiny_folder):
    teacher = resolve_backbone(tiny_folder)
    for weight in teacher.parameters():
        weight.data.mul_(1.3)
    task = RelationTask(experiment.task, teacher, RelationConfig(num_heads=4))
    loss = task.loss(experiment.backbone, task.collate([task.examples()[0], task.examples()[1]]))
    assert loss.figures["relations"] > 0
    assert loss.value.item() == pytest.approx(loss.figures["task"] + loss.figures["relations"], rel=1e-5)
    loss.value.backward()
    assert experiment.backbone.model.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in teacher.parameters())
    assert not any(weight is other for weight in teacher.parameters() for other in task.parameters())


def test_a_teacher_has_nothing_to_teach_itself(experiment):
    task = RelationTask(experiment.task, experiment.backbone, RelationConfig(num_heads=4))
    loss = task.loss(experiment.backbone, task.collate([task.examples()[0]]))
    assert loss.figures["relations"] == pytest.approx(0, abs=1e-5)


def test_a_family_with_one_matrix_is_refused(tiny_backbone):
    with pytest.raises(BackboneError, match="expected one of bert"), listening(tiny_backbone("gpt2")):
        pass


def test_a_teacher_that_cannot_read_as_much_is_refused(experiment, tiny_backbone):
    task = RelationTask(experiment.task, tiny_backbone("bert"), RelationConfig())
    with pytest.raises(BackboneError, match="96 positions"):
        task.loss(experiment.backbone, task.collate([task.examples()[0]]))
