"""What is taught, against formulas written out; and the same things heard from teacher and student."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from m6rec.assemble import build
from m6rec.distillation.config import DistillationConfig
from m6rec.distillation.lessons import LESSONS, Ask, ScoreLesson, TokenLesson, VectorLesson, lists_of
from m6rec.distillation.teacher import Teacher, read_answer, request_of
from m6rec.errors import ConfigError, DistillationError
from m6rec.recipe import read_recipe
from tests.little_shop import SMALL


@dataclasses.dataclass(frozen=True)
class Stray:
    """A batch of nobody's task."""

    x: torch.Tensor


def ask(taught, temperature=1.0, top_k=3):
    return Ask(taught, temperature, top_k)


def ranked(rows, labels):
    return SimpleNamespace(rows=torch.tensor(rows), labels=torch.tensor(labels))


class TestScores:
    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_classes(self, temperature):
        student, teacher = torch.randn(5, 2), torch.randn(5, 2).half()
        found = ScoreLesson(ask("logits", temperature)).distance(student, {"scores": teacher}, None)
        p, q = (torch.softmax(each.float() / temperature, 1) for each in (teacher, student))
        assert found.item() == pytest.approx(temperature**2 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)

    def test_lists_are_each_yes_and_every_no_of_its_tree(self):
        places, keep = lists_of(ranked([0, 0, 0, 1, 1, 2], [1, 0, 1, 0, 1, 1]))
        lists = [row[taken].tolist() for row, taken in zip(places, keep, strict=True)]
        assert lists == [[0, 1], [2, 1], [4, 3], [5]]

    def test_lists_and_margins(self):
        batch, scores = ranked([0, 0, 0], [0, 1, 0]), torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, -1.0]])
        student = torch.zeros(3, 2)
        p = torch.softmax(torch.tensor([3.0, 1.0, -1.0]), 0)
        listwise = ScoreLesson(ask("listwise")).distance(student, {"scores": scores}, batch)
        assert listwise.item() == pytest.approx((p * (p * 3).log()).sum().item(), rel=1e-4)
        margin = ScoreLesson(ask("margin")).distance(student, {"scores": scores}, batch)
        assert margin.item() == pytest.approx((2**2 + 4**2) / 2)


class TestTokens:
    def test_all_tokens_are_the_whole_divergence(self):
        student, teacher = torch.randn(4, 6), torch.randn(4, 6)
        lesson = TokenLesson(ask("logits", temperature=2.0, top_k=6))
        found = lesson.distance(student, lesson.labels(teacher), None)
        p, q = (torch.softmax(each / 2, 1) for each in (teacher, student))
        assert found.item() == pytest.approx(4 * (p * (p / q).log()).sum(1).mean().item(), rel=2e-2)  # half precision

    def test_fewer_tokens_are_a_lower_bound_that_nothing_left_to_learn_meets(self):
        student, teacher = torch.randn(4, 50) * 3, torch.randn(4, 50) * 3
        distances = []
        for k in (1, 5, 50):
            lesson = TokenLesson(ask("logits", top_k=k))
            distances.append(lesson.distance(student, lesson.labels(teacher), None).item())
            assert abs(lesson.distance(teacher, lesson.labels(teacher), None).item()) < 1e-3
        assert distances == sorted(distances)

    def test_labels_are_small(self):
        labels = TokenLesson(ask("logits", top_k=8)).labels(torch.randn(10, 30_000))
        assert sum(tensor.nbytes for tensor in labels.values()) == 10 * (8 * (4 + 2) + 2)
        mass = labels["logs"].float().exp().sum(1) + labels["tail"].float().exp()
        torch.testing.assert_close(mass, torch.ones(10), rtol=0, atol=2e-3)


def test_vectors_are_compared_by_direction():
    lesson = VectorLesson(ask("vectors"))
    vectors = torch.randn(3, 8)
    assert lesson.distance(vectors * 7, lesson.labels(vectors), None).item() == pytest.approx(0, abs=1e-5)
    assert lesson.distance(-vectors, lesson.labels(vectors), None).item() == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({}, "expected 2 rows"),
        ({"scores": torch.zeros(3, 2)}, "expected 2 rows"),
        ({"scores": torch.tensor([[0.0, float("nan")], [0.0, 0.0]])}, "not finite"),
        ({"scores": torch.tensor([[0.0, float("inf")], [0.0, 0.0]])}, "not finite"),
        ({"scores": torch.zeros(2, 3)}, "answers another task"),
        ({"vectors": torch.zeros(2, 2)}, "answers another task"),
    ],
)
def test_labels_that_do_not_fit_are_told(labels, said):
    with pytest.raises(DistillationError, match=said):
        ScoreLesson(ask("logits")).check(labels, ranked([0, 0], [1, 0]))


def test_what_cannot_be_taught_is_told():
    config = DistillationConfig(teacher="run", taught="vectors")
    with pytest.raises(ConfigError, match="expected one of generation, ranking, retrieval"):
        Ask.of(config, "zeroshot")
    with pytest.raises(ConfigError, match="expected logits or listwise or margin"):
        Ask.of(config, "ranking")
    with pytest.raises(DistillationError, match="does not say what it asks for"):
        Ask.read({"ask": "{}"})
    with pytest.raises(ConfigError, match=r"(?s)alpha.*temperature.*top_k"):
        DistillationConfig(teacher="run", alpha=2, temperature=0, top_k=0)


@pytest.fixture(params=["ranking", "title", "retrieval", "retrieval-flat"])
def experiment(request, shop, tiny_folder, tmp_path):
    words = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL[request.param]]
    return build(read_recipe(request.param, words))


def test_a_teacher_says_over_the_wire_what_its_task_says(experiment):
    task, backbone = experiment.task.eval(), experiment.backbone.eval()
    task.refresh(backbone, 0)
    examples = task.examples()
    batch = task.collate([examples[0], examples[1], examples[2]])
    asked = ask(LESSONS[task.name].taught[0])
    teacher, lesson = Teacher(task, backbone, "v1"), LESSONS[task.name](asked)
    labels, version = read_answer(teacher.answer(request_of(batch, asked)))
    assert version == "v1"
    lesson.check(labels, batch)
    for name, tensor in teacher.label(batch, asked).items():
        assert tensor.equal(labels[name])
    with lesson.heard(task, backbone) as (view, heard), torch.no_grad():
        task.loss(view, batch)
    # A teacher has nothing to teach itself.
    assert lesson.distance(lesson.answers(heard, batch), labels, batch).item() == pytest.approx(0, abs=1e-3)
    assert set(lesson.rows(batch).tolist()) <= {0, 1, 2}


def test_a_teacher_gives_reasons(experiment):
    teacher = Teacher(experiment.task, experiment.backbone, "v1")
    for broken in (b"no batch", request_of(Stray(torch.ones(1)), ask("logits"))):
        with pytest.raises(DistillationError, match=r"no message of tensors|without"):
            read_answer(teacher.answer(broken))
