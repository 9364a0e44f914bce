"""Retrieval that is taught: equal to the textbook's loss, in one chunk or many, and what each lesson adds."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from m6rec.errors import ConfigError
from m6rec.training.dense import DenseRetrieval, Joined, Lessons
from m6rec.training.dense_config import DenseConfig, DistilConfig, HardConfig, PseudoConfig
from m6rec.training.judges import Ranker
from m6rec.training.lists import Lists
from m6rec.training.mining import target_events
from m6rec.training.pseudo import PseudoLabels, PseudoWindow

BATCH = ("retrieval", "task.negatives=batch")
STEP = (*BATCH, "task.item_vectors=step", "tuner.name=lora")
FLAT = ("retrieval-flat", "task.logq=false")
DEPTH = 6


def prepared(make, *words):
    experiment = make(*words)
    experiment.task.refresh(experiment.backbone, 0)
    return experiment


def lessons(experiment, seed=0, **more):
    """Return random lists of every training position, judged by their first number."""
    material, rng = experiment.task.material, np.random.default_rng(seed)
    events = target_events(list(experiment.task.examples()), material.table.num_items)
    ids = np.stack([rng.permutation(material.table.num_items)[: 1 + DEPTH] for _ in events]).astype(np.int32)
    ids[:, 0] = material.train.items[events]
    ids[:, 1:][ids[:, 1:] == ids[:, :1]] = -1
    numbers = rng.normal(size=(*ids.shape, 2)).astype(np.float32)
    states = F.normalize(torch.from_numpy(rng.normal(size=(len(events), 8))), dim=1).numpy().astype(np.float16)
    items = torch.from_numpy(rng.normal(size=(material.table.num_items, 8)).astype(np.float32))
    return Lessons(Lists(events, ids, numbers, states), Ranker((1.0, 0.0)), items, **more)


def taught(experiment, config, given=None):
    return DenseRetrieval(experiment.task, config, given).eval()


def windows(experiment, count=7):
    return [experiment.task.examples()[index] for index in range(count)]


def gradients(task, backbone, batch):
    task.zero_grad(set_to_none=True)
    backbone.zero_grad(set_to_none=True)
    loss = task.loss(backbone.eval(), batch)
    loss.value.backward()
    parameters = [*task.named_parameters(), *backbone.named_parameters()]
    return loss, {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}


class TestAlone:
    @pytest.mark.parametrize("words", [("retrieval",), BATCH, FLAT], ids=["catalogue", "batch", "flat"])
    def test_it_is_the_tasks_own_loss(self, make, words):
        experiment = prepared(make, *words)
        task = taught(experiment, DenseConfig())
        examples = windows(experiment)
        found = task.loss(experiment.backbone.eval(), task.collate(examples))
        expected = experiment.task.loss(experiment.backbone, experiment.task.collate(examples))
        torch.testing.assert_close(found.value, expected.value, rtol=1e-4, atol=1e-4)
        assert (found.weight, found.figures) == (expected.weight, expected.figures)

    @pytest.mark.parametrize("words", [BATCH, STEP, FLAT], ids=["pooled", "step", "flat"])
    def test_chunks_are_the_batch_at_once(self, make, words):
        experiment = prepared(make, *words)
        whole, cut = (taught(experiment, DenseConfig(chunk=chunk)) for chunk in (None, 3))
        examples = windows(experiment)
        expected, found = (gradients(task, experiment.backbone, task.collate(examples)) for task in (whole, cut))
        torch.testing.assert_close(found[0].value, expected[0].value)
        assert len(expected[1]) > 3
        torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-5)

    def test_a_logical_batch_of_thousands(self, make):
        experiment = prepared(make, *BATCH)
        task = taught(experiment, DenseConfig(chunk=16))
        examples = [task.examples()[index % len(task.examples())] for index in range(300)]
        loss, found = gradients(task, experiment.backbone, task.collate(examples))
        assert loss.weight > 1024
        assert all(torch.isfinite(gradient).all() for gradient in found.values())

    def test_what_a_user_takes_later_is_no_negative(self, make):
        experiment = prepared(make, *BATCH)
        examples = windows(experiment)
        losses = []
        for mask in (False, True):
            task = taught(experiment, DenseConfig(mask_taken=mask))
            batch = task.collate(examples)
            losses.append(task.loss(experiment.backbone, batch).value)
        assert losses[1] < losses[0]
        history, (rows, items) = experiment.task.material.train, batch.taken
        events = target_events(examples, experiment.task.material.table.num_items)
        users = history.users[events]
        for row in range(len(events)):
            own = history.items[history.of(users[row])]
            assert set(items[rows == row].tolist()) == set(own[own >= 0].tolist())

    def test_log_q_is_the_chance_to_be_in_the_batch(self, make):
        experiment = prepared(make, *BATCH, "task.logq=true")
        task, columns = taught(experiment, DenseConfig()), torch.tensor([0, 3, 20])
        found = task._log_q(SimpleNamespace(negatives=torch.tensor([[3]])), columns, 50)
        counts = experiment.task.material.target_counts
        share = ((counts + 1) / (counts.sum() + len(counts)))[columns].double()
        expected = (1 - (1 - share) ** 50).log().float()
        expected[1] = 0  # what is mined for the batch is there for sure
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_lessons_are_needed(self, make):
        experiment = prepared(make, *BATCH)
        with pytest.raises(ConfigError, match="need a teacher's lists"):
            DenseRetrieval(experiment.task, DenseConfig(hard=HardConfig(num=1)))


class TestHardNegatives:
    def test_they_join_the_items_that_are_compared(self, make):
        experiment = prepared(make, *BATCH)
        given = lessons(experiment)
        task = taught(experiment, DenseConfig(hard=HardConfig(num=DEPTH, rule="none")), given)
        examples = windows(experiment, 1)
        torch.manual_seed(0)
        batch = task.collate(examples)
        rows = [np.flatnonzero(given.lists.events == event)[0] for event in target_events(examples, 36)]
        for place, row in enumerate(rows):
            mined = set(given.lists.ids[row, 1:].tolist()) - {-1}
            assert mined <= set(batch.negatives[place].tolist())
        alone = taught(experiment, DenseConfig())
        assert (
            task.loss(experiment.backbone, batch).value > alone.loss(experiment.backbone, alone.collate(examples)).value
        )

    def test_nothing_survives_and_it_goes_on_at_random(self, make, caplog):
        experiment = prepared(make, *BATCH)
        config = DenseConfig(hard=HardConfig(num=3, rule="absolute", threshold=0.0))
        task = taught(experiment, config, lessons(experiment))
        assert "all hard negatives are random" in caplog.text
        loss, _ = gradients(task, experiment.backbone, task.collate(windows(experiment)))
        assert torch.isfinite(loss.value)

    def test_a_schedule_brings_new_lists(self, make):
        experiment = prepared(make, *BATCH)
        asked, config = [], DenseConfig(hard=HardConfig(num=DEPTH, rule="none", refresh_every=2))
        given = lessons(experiment, mine=lambda epoch: (asked.append(epoch), lessons(experiment, seed=1).lists)[1])
        task = taught(experiment, config, given)
        before = task._ids.clone()
        for epoch in range(4):
            task.refresh(experiment.backbone, epoch)
        assert asked == [2]
        assert not before.equal(task._ids)
        # Resumed in the epoch after: the lists in use are those that were mined last.
        taught(experiment, config, given).refresh(experiment.backbone, 3)
        assert asked == [2, 2]


class TestGuide:
    def test_what_the_guide_likes_better_is_masked(self, make):
        experiment = prepared(make, *BATCH)
        given, examples = lessons(experiment), windows(experiment)
        losses = []
        for margin in (-1e9, 0.0, 1e9):
            task = taught(experiment, DenseConfig(guide=margin), given)
            losses.append(task.loss(experiment.backbone, task.collate(examples)).value.item())
        alone = taught(experiment, DenseConfig())
        plain = alone.loss(experiment.backbone, alone.collate(examples)).value.item()
        assert losses[0] == pytest.approx(plain, rel=1e-5)
        assert plain > losses[1] > losses[2]
        assert losses[2] == pytest.approx(0, abs=1e-5)  # nothing is left to be told from


class TestTeacher:
    @pytest.mark.parametrize("loss", ["kl", "margin-mse"])
    def test_it_is_the_rankers_list_that_is_taught(self, make, loss):
        experiment = prepared(make, *BATCH)
        distil = DistilConfig(loss=loss, weight=2.0, places=DEPTH)
        task = taught(experiment, DenseConfig(distil=distil), lessons(experiment))
        batch = task.collate(windows(experiment))
        found, got = gradients(task, experiment.backbone, batch)
        # What it judges is no negative: beside the teacher's, the loss is that of the batch alone.
        plain = task.loss(experiment.backbone, replace(batch, places=batch.places[:, :0])).value
        torch.testing.assert_close(found.value, plain + 2 * found.figures[loss])
        assert found.figures[loss] > 0
        assert not any(name.startswith("ranker") for name in got)

    def test_jointly_the_ranker_learns(self, make):
        experiment = prepared(make, *BATCH)
        config = DenseConfig(distil=DistilConfig(weight=1.0, joint=True))
        task = taught(experiment, config, lessons(experiment))
        loss, got = gradients(task, experiment.backbone, task.collate(windows(experiment)))
        assert got["ranker.weight"].abs().sum() > 0
        assert loss.figures["ranker"] > 0


class TestPseudo:
    def test_labels_are_examples_of_their_own(self, make):
        experiment = prepared(make, *BATCH)
        given, real = lessons(experiment), windows(experiment, 1)[0]
        label = PseudoWindow(real.user, real.segments[:3], real.verbs[:3], real.gaps[:3], real.events[:3], 2, row=0)
        lists = Lists(*(getattr(given.lists, name)[:1] for name in ("events", "ids", "numbers", "states")))
        given = replace(given, pseudo=PseudoLabels([label], lists))
        task = taught(experiment, DenseConfig(pseudo=PseudoConfig(share=0.1), hard=HardConfig(num=2)), given)
        examples = task.examples()
        assert isinstance(examples, Joined)
        assert len(examples) == len(experiment.task.examples()) + 1 == len(task.lengths())
        assert examples[len(examples) - 1] is label
        batch = task.collate([label])
        assert torch.isnan(batch.states).all()  # no guide for what another retriever has labelled
        guided = taught(experiment, replace(task.config, guide=5.0), given)
        assert len(guided._guided(batch, torch.arange(36), torch.tensor([3]))[0]) == 0
        assert len(batch.negatives) == int(real.segments[2] < 36)
        assert task._rows([label]).tolist() == [len(given.lists)]
        both = task.collate([real, label])
        loss = task.loss(experiment.backbone, both)
        assert loss.weight == len(both.negatives)


@pytest.mark.parametrize(
    "settings",
    [
        {"hard": HardConfig(num=-1)},
        {"hard": HardConfig(threshold=1.5)},
        {"pseudo": PseudoConfig(share=2)},
        {"pseudo": PseudoConfig(cap=0)},
        {"distil": DistilConfig(temperature=0)},
        {"chunk": 0},
    ],
)
def test_impossible_settings(settings):
    with pytest.raises(ConfigError, match="expected"):
        DenseConfig(**settings)
