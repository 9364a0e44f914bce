"""Retrieval: it learns, one pass over everything equals one by one, and nothing of the test period reaches it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from m6rec.errors import ConfigError, RunError
from m6rec.tasks.retrieval.config import RetrievalConfig
from m6rec.tasks.retrieval.data import RetrievalScorer, excluded_columns, log_share
from m6rec.tasks.retrieval.item_space import last_segments
from m6rec.tasks.retrieval.windows import Window, window

POOLED = ("retrieval",)
STEP = ("retrieval", "task.item_vectors=step", "tuner.name=lora")
FLAT = ("retrieval-flat",)
KINDS = pytest.mark.parametrize("words", [POOLED, STEP, FLAT], ids=["pooled", "step", "flat"])


def batch_of(experiment, count=6):
    task = experiment.task
    task.refresh(experiment.backbone, 0)
    return task.collate([task.examples()[index] for index in range(count)])


def trained(experiment):
    parts = (experiment.task, experiment.backbone)
    return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]


def sample(experiment, count=8):
    """Return stretches of users' histories of different lengths, from the training events."""
    material = experiment.task.material
    rng, spans = np.random.default_rng(0), []
    for user in range(count):
        owned = material.train.of(user)
        stop = int(rng.integers(owned.start + 1, owned.stop + 1))
        spans.append(window(material.train, material.windows.segments, user, max(owned.start, stop - 6), stop))
    return spans


@KINDS
def test_the_loss_falls(make, words):
    experiment = make(*words)
    batch = batch_of(experiment)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(trained(experiment), 3e-3)
    values = []
    for _ in range(12):
        loss = experiment.task.train().loss(experiment.backbone.train(), batch)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        values.append(loss.value.item())
    assert values[-1] < 0.85 * values[0]
    assert loss.weight == (batch.targets >= 0).sum()


@pytest.mark.parametrize("words", [STEP, FLAT], ids=["step", "flat"])
def test_gradients_reach_the_adapter(make, words):
    experiment = make(*words)
    experiment.task.loss(experiment.backbone, batch_of(experiment)).value.backward()
    adapter = experiment.tuner.parameters()
    touched = [name for name, parameter in adapter.items() if parameter.grad is not None and parameter.grad.any()]
    assert any("lora" in name for name in touched)


class TestLoss:
    """Equal to the textbook's, worked from the public parts."""

    def parts(self, experiment, batch):
        task = experiment.task.eval()
        segments = task.segments()
        wanted = batch.targets >= 0
        states = F.normalize(task.history(batch, segments.towers, batch.segments)[wanted], dim=1)
        met = torch.zeros(len(states), task.material.table.num_items, dtype=torch.bool)
        rows, columns = wanted.nonzero(as_tuple=True)
        for number, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            history = batch.segments[row, : column + 1]
            met[number, history[history < met.shape[1]]] = True
        targets = batch.targets[wanted]
        met[torch.arange(len(targets)), targets] = False
        items = F.normalize(segments.towers[: met.shape[1]], dim=1)
        return states / task.config.temperature, items, targets, met

    def test_over_the_whole_catalogue(self, make):
        experiment = make("retrieval")
        batch = batch_of(experiment)
        users, items, targets, met = self.parts(experiment, batch)
        expected = F.cross_entropy((users @ items.T).masked_fill(met, -torch.inf), targets)
        found = experiment.task.loss(experiment.backbone, batch)
        torch.testing.assert_close(found.value, expected, atol=1e-4, rtol=1e-4)
        assert found.figures["temperature"] == pytest.approx(0.07)

    @pytest.mark.parametrize("logq", ["true", "false"])
    def test_in_batch_negatives(self, make, logq):
        experiment = make("retrieval", "task.negatives=batch", f"task.logq={logq}")
        batch = batch_of(experiment, 2)
        users, items, targets, met = self.parts(experiment, batch)
        read = batch.segments[batch.keep]
        columns = torch.unique(torch.cat([targets, read[read < len(items)]]))
        assert len(columns) < 36
        scores = (users @ items.T).masked_fill(met, -torch.inf)
        if logq == "true":
            train = experiment.task.material.train
            counts = torch.bincount(torch.from_numpy(train.items[train.items >= 0].astype(np.int64)), minlength=36)
            scores = scores - torch.log((counts + 1) / (counts.sum() + 36))
        expected = F.cross_entropy(scores[:, columns], torch.searchsorted(columns, targets))
        torch.testing.assert_close(
            experiment.task.loss(experiment.backbone, batch).value, expected, atol=1e-4, rtol=1e-4
        )

    def test_random_negatives_make_it_harder(self, make):
        few, many = (make("retrieval", "task.negatives=batch", f"task.num_negatives={count}") for count in (0, 500))
        values = [make_.task.eval().loss(make_.backbone, batch_of(make_, 1)).value.item() for make_ in (few, many)]
        assert values[0] < values[1]

    def test_searches_are_read_but_never_predicted(self, make):
        experiment = make("retrieval")
        batch = batch_of(experiment, 60)
        num_items = experiment.task.material.table.num_items
        assert (batch.segments >= num_items).any()
        assert batch.targets.max() < num_items

    def test_helpers_by_hand(self):
        pairs = (torch.tensor([0, 0, 1]), torch.tensor([3, 5, 9]))
        assert excluded_columns(pairs, torch.tensor([3, 4, 9]), 2).int().tolist() == [[1, 0, 0], [0, 0, 1]]
        torch.testing.assert_close(log_share(torch.tensor([3.0, 0.0])).exp(), torch.tensor([0.8, 0.2]))


class TestOnePass:
    def test_flat_every_state_of_the_tree_is_the_state_of_its_prefix(self, make):
        experiment = make(*FLAT)
        task, backbone = experiment.task.eval(), experiment.backbone.eval()
        material, num_items = task.material, task.material.table.num_items
        examples = [task.examples()[index] for index in range(5)]
        dense = task.history.reader.batch(examples, material.record, num_items, predict=True)
        with torch.no_grad():
            states, number = task.history(backbone, dense), 0
            for example in examples:
                for place in range(example.first_target, len(example)):
                    if example.segments[place] >= num_items:
                        continue
                    stop = int(example.events[place])
                    prefix = window(
                        material.train, material.windows.segments, example.user, int(example.events[0]), stop
                    )
                    alone = task.history.reader.batch([prefix], material.record, num_items, predict=False)
                    expected = task.history(backbone, alone)[0]
                    torch.testing.assert_close(states[number], expected, atol=1e-4, rtol=1e-4)
                    assert dense.targets[number] == example.segments[place]
                    assert dense.segments[number][dense.segments[number] >= 0].tolist() == prefix.segments.tolist()
                    number += 1
        assert number == len(states) > 10

    def test_pooled_every_state_of_a_window_is_the_state_of_its_prefix(self, make):
        experiment = make(*POOLED)
        batch = batch_of(experiment)
        task, segments = experiment.task.eval(), experiment.task.segments()
        with torch.no_grad():
            states = F.normalize(task.history(batch, segments.towers, batch.segments), dim=2)
        material = task.material
        for row in range(4):
            example = task.examples()[row]
            for length in range(1, len(example)):
                start = int(example.events[0])
                prefix = window(material.train, material.windows.segments, example.user, start, start + length)
                found = task.states(experiment.backbone, [prefix], segments)[0]
                torch.testing.assert_close(found, states[row, length - 1], atol=1e-4, rtol=1e-4)

    @KINDS
    def test_together_equals_one_by_one(self, make, words):
        experiment = make(*words)
        batch_of(experiment)
        task, windows = experiment.task, sample(experiment)
        segments = task.segments()
        together = task.states(experiment.backbone.eval(), windows, segments)
        for number, one in enumerate(windows):
            alone = task.states(experiment.backbone, [one], segments)[0]
            torch.testing.assert_close(together[number], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(len(windows)))


class TestNothingHeldOut:
    @pytest.mark.parametrize("words", [POOLED, FLAT], ids=["pooled", "flat"])
    def test_the_test_period_changes_nothing_that_is_learnt(self, make, test_shuffled, words):
        experiments = [make(*words), make(*words, data=test_shuffled)]
        one, other = experiments
        tests = [found.dataset.histories().queries("test").targets for found in experiments]
        assert (tests[0] != tests[1]).any()
        for name in ("keys", "records", "texts"):
            assert getattr(one.task.catalogue, name) == getattr(other.task.catalogue, name)
        assert (one.task.catalogue.ids == other.task.catalogue.ids).all()
        assert torch.equal(one.task.material.target_counts, other.task.material.target_counts)
        for mine, theirs in zip(one.task.examples(), other.task.examples(), strict=True):
            for name in ("segments", "verbs", "gaps"):
                assert (getattr(mine, name) == getattr(theirs, name)).all()
        for name, tensor in one.task.links.tensors().items():
            assert torch.equal(tensor, other.task.links.tensors()[name])
        for experiment in experiments:
            torch.manual_seed(0)
            optimizer = torch.optim.SGD(trained(experiment), 0.1)
            experiment.task.loss(experiment.backbone, batch_of(experiment)).value.backward()
            optimizer.step()
            experiment.task.finish(experiment.backbone)
        states = [{**found.task.state_dict(), **found.backbone.state_dict()} for found in experiments]
        for name, tensor in states[0].items():
            assert torch.equal(tensor, states[1][name]), name

    def test_no_training_window_holds_a_held_out_event(self, make):
        experiment = make(*POOLED)
        material = experiment.task.material
        splits = np.array(experiment.dataset.interactions["split"][:])
        read = {int(material.train.rows[event]) for found in experiment.task.examples() for event in found.events}
        assert read
        assert (splits[sorted(read)] == 0).all()

    def test_a_score_does_not_depend_on_what_comes_next(self, make, test_shuffled):
        scores = []
        for experiment in (make(*POOLED), make(*POOLED, data=test_shuffled)):
            batch_of(experiment)
            experiment.task.finish(experiment.backbone)
            queries = experiment.dataset.histories().queries("test")
            scores.append(RetrievalScorer(experiment.task, experiment.backbone).score(queries))
        assert np.array_equal(*scores)


class TestInference:
    EMPTY = Window(0, *(np.zeros(0, dtype=np.int64) for _ in range(4)))

    @KINDS
    def test_a_user_without_history(self, make, words):
        experiment = make(*words)
        batch_of(experiment)
        task = experiment.task
        task.finish(experiment.backbone)
        windows = sample(experiment, 2)
        found = task.states(experiment.backbone, [windows[0], self.EMPTY, windows[1]], task.segments())
        assert torch.equal(found[1], task.prior)
        assert task.prior.norm().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(
            found[2], task.states(experiment.backbone, windows[1:], task.segments())[0], atol=1e-5, rtol=1e-4
        )

    def test_the_index_and_the_scorer_agree(self, make):
        experiment = make(*POOLED, "task.neighbours.cooccurrence=0.7", "task.neighbours.text=2")
        batch_of(experiment)
        task = experiment.task
        task.finish(experiment.backbone)
        queries = experiment.dataset.histories().queries("test")
        space, scores = task.space(), RetrievalScorer(task, experiment.backbone, batch_size=7).score(queries)
        assert (space.cooccurrence, space.text) == (0.7, 2.0)
        history, segments = task.material.table.readable(queries.history)
        spans = [history.of(int(user)) for user in queries.users]
        windows = [
            window(history, segments, int(user), max(span.start, span.stop - 8), span.stop)
            for user, span in zip(queries.users, spans, strict=True)
        ]
        states = task.states(experiment.backbone, windows, task.segments())
        last = last_segments([found.segments for found in windows], space.config.window)
        users = space.users(states, space.profiles(last, task.segments().texts))
        items = [history.items[found.events[0] : found.events[-1] + 1] for found in windows]
        expected = (users @ space.vectors.T).numpy() + 0.7 * space.followers(items)
        np.testing.assert_allclose(scores, expected, atol=2e-3)

    def test_items_that_training_has_not_met_go_by_their_text(self, make):
        experiment = make(*POOLED, "task.neighbours.kin=0", "task.neighbours.new_share=0")
        batch_of(experiment)
        task = experiment.task
        ids = task.catalogue.ids.copy()
        task.catalogue.ids[:5] = -1
        before = task.space().learnt
        task.tower.residual.weight.data += 1
        after = task.space().learnt
        assert torch.equal(after[:5], before[:5])
        met = torch.from_numpy(task.catalogue.ids >= 0)
        assert (after[met] != before[met]).any(1).all()
        assert (ids >= 0).sum() > met.sum()

    def test_a_new_item_inherits_the_residuals_of_its_kin(self, make):
        experiment = make(*POOLED, "task.neighbours.kin=3")
        batch_of(experiment)
        task = experiment.task
        task.catalogue.ids[:5] = -1
        space = task.space()
        texts = task.segments().texts[:36]
        trained_items = [number for number in range(36) if task.catalogue.ids[number] >= 0]
        likeness, places = (texts[2] @ texts[trained_items].T).topk(3)
        parents = torch.tensor(trained_items)[places]
        shares = likeness.clamp(min=1e-6) / likeness.clamp(min=1e-6).sum()
        residuals = task.tower.residual(torch.from_numpy(task.catalogue.ids)[parents])
        bare = task.tower(task.whitening(task.catalogue.vectors[2:3]), torch.tensor([-1]))[0]
        expected = F.normalize(bare + shares @ residuals, dim=0)
        torch.testing.assert_close(space.learnt[2], expected, atol=1e-5, rtol=1e-4)

    def test_new_items_get_the_share_that_is_asked_for(self, make):
        experiment = make(*POOLED, "task.neighbours.new_share=0.2", "task.neighbours.text=1")
        batch_of(experiment)
        task = experiment.task
        task.finish(experiment.backbone)
        task.catalogue.ids[:5] = -1
        space = task.space()
        assert (space.boost[5:] == 0).sum() >= 26
        scores = (space.users(task.probes, space.profiles(task.probe_items)) @ space.vectors.T).numpy()
        histories = [row[row >= 0][::-1] for row in task.probe_items.numpy()]
        scores += space.cooccurrence * space.followers(histories)
        mass = torch.from_numpy(scores).double().softmax(1)[:, task.catalogue.ids < 0].sum(1)
        assert mass.mean().item() == pytest.approx(0.2, abs=0.005)

    def test_a_loaded_run_has_nothing_to_train_on(self, retrieval_run):
        from m6rec.assemble import open_run

        with pytest.raises(RunError, match="loaded for inference"):
            open_run(retrieval_run).task.examples()


def test_vectors_are_made_anew_every_epoch_where_asked(make):
    experiment = make(*FLAT, "task.item_vectors=epoch")
    task = experiment.task
    task.refresh(experiment.backbone, 0)
    before = task.catalogue.vectors
    cached = make(*FLAT, "task.item_vectors=cached")
    cached.task.refresh(cached.backbone, 0)
    kept = cached.task.catalogue.vectors
    for found in (experiment, cached):
        for name, parameter in found.tuner.parameters().items():
            if "lora_B" in name:
                parameter.data += 0.5
        found.task.refresh(found.backbone, 1)
    assert not torch.equal(task.catalogue.vectors, before)
    assert cached.task.catalogue.vectors is kept


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"temperature": 0}, "temperature"),
        ({"max_events": 1}, "max_events"),
        ({"context_events": 40}, "context_events"),
    ],
)
def test_impossible_settings(settings, part):
    with pytest.raises(ConfigError, match=part):
        RetrievalConfig(**settings)
