"""Ranking: one tree equals pair by pair, records equal the dataset, and no label reaches an earlier branch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from m6rec.data.features import NUM_FEATURES, features
from m6rec.data.histories import Judgements
from m6rec.data.statistics import CROSS_NAMES
from m6rec.errors import DataError, TunerError
from m6rec.tasks.ranking.data import RankingBatch, pair_statistics
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.ranking.task import Ranking, _listwise
from m6rec.text.batch import TokenBatch
from m6rec.text.library import find
from m6rec.text.prompt import Candidate, UserText
from tests.little_shop import prepare_shop, shop_events


def awake(experiment, seed=0):
    """Give the head and the adapter weights that let every token and number count; a new head answers one half."""
    torch.manual_seed(seed)
    torch.nn.init.normal_(experiment.task.head.weight, std=0.5)
    for name, parameter in experiment.tuner.parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    experiment.backbone.eval()
    return experiment.task.eval()


@pytest.fixture
def ready(make):
    experiment = make("ranking")
    return awake(experiment), experiment.backbone, experiment


def batch_of(task, count=6):
    rows = task.examples()
    return task.collate([rows[index] for index in range(min(count, len(rows)))])


@pytest.mark.parametrize(
    "word", ["task.loss=pointwise", "task.loss=listwise", "tuner={name: option-adapter, num_virtual_tokens: 4}"]
)
def test_the_loss_falls(make, word):
    experiment = make("ranking", word, "task.history_dropout=0")
    task, backbone = experiment.task.train(), experiment.backbone.train()
    batch = batch_of(task, 4)
    parameters = [p for part in (task, backbone) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 5e-3)
    values = []
    for _ in range(12):
        optimizer.zero_grad()
        found = task.loss(backbone, batch)
        found.value.backward()
        optimizer.step()
        values.append(found.value.item())
    assert values[-1] < 0.9 * values[0]
    assert 0 < found.weight <= len(batch.labels)


class TestOptions:
    """A tuner's answers in place of the head."""

    @pytest.fixture(params=["option", "option-adapter"])
    def experiment(self, make, request):
        words = ("tuner.num_virtual_tokens=4", "task.history_dropout=0")
        return make("ranking", f"tuner={{name: {request.param}}}", *words)

    def test_it_starts_from_what_the_numbers_say_alone(self, experiment):
        task, backbone = experiment.task.eval(), experiment.backbone.eval()
        batch = batch_of(task)
        with torch.no_grad():
            scores, numbers = task.logits(backbone, batch), task.numbers(batch.numbers)[:, 0]
        torch.testing.assert_close(scores[:, 1] - scores[:, 0], numbers)

    def test_the_first_step_moves_the_answers_apart(self, experiment):
        task, backbone = experiment.task.train(), experiment.backbone.train()
        assert task.head is None
        task.loss(backbone, batch_of(task)).value.backward()
        apart, together = backbone.prompt_encoder.weight.grad[-2:], backbone.options(2).rows
        assert torch.equal(together[0], together[1])
        assert not torch.allclose(apart[0], apart[1])

    def test_a_tuner_with_more_answers_is_refused(self, make):
        with pytest.raises(TunerError, match="with 2 classes over a tuner with 3 answers"):
            make("ranking", "tuner={name: option, num_classes: 3}")


class TestOnePass:
    def test_a_tree_equals_its_pairs_one_by_one(self, ready):
        task, backbone, _ = ready
        pairs = task.pairs("valid")
        together = task.score_pairs(backbone, pairs, "valid")
        assert len(np.unique(together.round(5))) > len(pairs) / 2
        for number in range(0, len(pairs), 7):
            alone = task.score_pairs(backbone, pairs.take(np.array([number])), "valid")
            assert alone[0] == pytest.approx(together[number], abs=1e-5)

    def test_training_trees_equal_their_pairs_one_by_one(self, make):
        experiment = make("ranking", "task.history_dropout=0", "task.max_events=40", "task.max_branches=40")
        task = awake(experiment)
        pairs = task.pairs("train")
        statistics = pair_statistics(task.statistics_for("train"), pairs, past_only=True)
        with torch.no_grad():
            batch = batch_of(task, 3)
            scores = task.logits(experiment.backbone, batch).softmax(1)[:, 1].numpy()
        order = np.lexsort((pairs.lengths, pairs.users))[: len(scores)]
        assert (batch.labels.numpy() == pairs.labels[order]).all()
        dataset, numbers = experiment.dataset, features(statistics)
        for place, pair in enumerate(order):
            user, start = int(pairs.users[pair]), int(pairs.history.offsets[pairs.users[pair]])
            rows = pairs.history.rows[start : start + int(pairs.lengths[pair])]
            events = [dataset.event_record(int(row)) for row in rows]
            given = {name: float(values[pair]) for name, values in statistics.items()}
            candidate = Candidate(item=task.catalogue.texts[pairs.items[pair]], statistics=given)
            tree = task.writer.tree(UserText(dataset.user_record(user), events=events), [candidate])
            alone = task._probabilities(experiment.backbone, [tree], [numbers[pair : pair + 1]])
            assert alone[0] == pytest.approx(scores[place], abs=1e-5)

    def test_batched_trees_equal_single_ones(self, ready):
        task, backbone, _ = ready
        rows = [task.examples()[index] for index in range(5)]
        with torch.no_grad():
            together = task.logits(backbone, task.collate(rows))
            alone = torch.cat([task.logits(backbone, task.collate([row])) for row in rows])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)

    def test_records_equal_the_dataset(self, ready):
        task, backbone, experiment = ready
        pairs = task.pairs("valid")
        expected, dataset = task.score_pairs(backbone, pairs, "valid"), experiment.dataset
        for number in range(0, len(pairs), 9):
            user, start = int(pairs.users[number]), int(pairs.history.offsets[pairs.users[number]])
            rows = pairs.history.rows[start : start + int(pairs.lengths[number])]
            text = UserText(dataset.user_record(user), events=[dataset.event_record(int(row)) for row in rows])
            place = int(pairs.items[number])
            found = task.rank(backbone, text, [(place, task.catalogue.record(place))])
            assert found[0] == pytest.approx(expected[number], abs=1e-5)


class TestNothingLater:
    def test_later_events_cannot_reach_an_earlier_branch(self, make, tmp_path):
        """Change what users did last and how they liked it: every branch before that scores the same."""
        # Rates of items count everybody's training events, so this prompt goes without statistics.
        prompt = tmp_path / "bare.yaml"
        lines = Path(find("prompts", "ranking")).read_text().splitlines()
        prompt.write_text("\n".join(line for line in lines if "statistics" not in line))
        words = (f"task.prompt={prompt}", "task.numbers=false", "task.history_dropout=0")
        found = []
        for name, change in (("one", False), ("other", True)):
            events = shop_events(12)
            last = {row["who"]: place for place, row in enumerate(events) if row["what"]}
            for place in last.values() if change else ():
                row = events[place]
                events[place] = {**row, "what": "g00", "did": "buy", "stars": 1 if row["stars"] >= 4 else 5}
            data = prepare_shop(tmp_path / name, events, split="ratio", split_shares=(1.0, 0.0, 0.0))
            experiment = make("ranking", "task.max_events=40", "task.max_branches=40", *words, data=data)
            task = awake(experiment)
            batch = batch_of(task, 12)
            with torch.no_grad():
                pairs = task.pairs("train")
                bonds = pair_statistics(task.statistics_for("train"), pairs, past_only=True)
                found.append((task.logits(experiment.backbone, batch), batch, pairs, bonds))
        (scores, batch, pairs, bonds), (others, _, same, other_bonds) = found
        lasts = torch.tensor([(batch.rows == row).nonzero()[-1].item() for row in batch.rows.unique()])
        before = torch.ones(len(scores), dtype=torch.bool)
        before[lasts] = False
        torch.testing.assert_close(scores[before], others[before], atol=1e-5, rtol=1e-4)
        assert (scores[lasts] - others[lasts]).abs().max() > 1e-3
        earlier = pairs.lengths < np.array([pairs.lengths[pairs.users == user].max() for user in pairs.users])
        assert (pairs.items[earlier] == same.items[earlier]).all()
        for name in CROSS_NAMES:
            np.testing.assert_array_equal(bonds[name][earlier], other_bonds[name][earlier])

    def test_the_test_period_changes_nothing_that_is_learnt(self, make, test_shuffled):
        found = []
        for words in ({}, {"data": test_shuffled}):
            experiment = make("ranking", **words)
            torch.manual_seed(0)
            experiment.task.loss(experiment.backbone, batch_of(experiment.task, 4)).value.backward()
            found.append((experiment.task, experiment.task.examples()))
        (one, rows), (other, same) = found
        assert torch.equal(torch.nan_to_num(one.item_statistics), torch.nan_to_num(other.item_statistics))
        assert len(rows) == len(same)
        assert rows[:] == same[:]
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert mine.grad is theirs.grad is None or torch.equal(mine.grad, theirs.grad)
        valid = [task.score_pairs(make("ranking").backbone.eval(), task.pairs("valid"), "valid") for task, _ in found]
        assert np.array_equal(*valid)


def test_listwise_by_hand():
    """Two trees: yes 1 among no 0 and -1; two yeses 2 and 0 that do not compete, among no 1; one no alone."""
    scores = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.0, 1.0, 3.0])
    labels, rows = torch.tensor([1, 0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    zeros = torch.zeros(3, 1, dtype=torch.long)
    batch = RankingBatch(
        TokenBatch(zeros, zeros == 0, zeros, zeros, zeros), rows, rows * 0, torch.zeros(7, NUM_FEATURES), labels
    )
    found = _listwise(scores, batch)
    e = np.exp
    terms = [np.log(e(1) + e(0) + e(-1)) - 1, np.log(e(2) + e(1)) - 2, np.log(e(0) + e(1)) - 0]
    assert found.weight == 3
    assert found.value.item() == pytest.approx(np.mean(terms), rel=1e-6)


def test_listwise_without_anything_to_compare():
    zeros = torch.zeros(1, 1, dtype=torch.long)
    for labels in ([1, 1], [0, 0]):
        batch = RankingBatch(
            TokenBatch(zeros, zeros == 0, zeros, zeros, zeros),
            torch.tensor([0, 0]),
            torch.tensor([0, 0]),
            torch.zeros(2, NUM_FEATURES),
            torch.tensor(labels),
        )
        found = _listwise(torch.tensor([0.3, 0.1], requires_grad=True), batch)
        assert (found.value.item(), found.weight) == (0.0, 0.0)


class TestLabels:
    def test_by_threshold(self, make):
        experiment = make("ranking", "task.threshold=4")
        pairs, dataset = experiment.task.pairs("train"), experiment.dataset
        history = dataset.histories().before("train")
        values = history.values[history.items >= 0]
        assert len(pairs) == len(values)
        assert sorted(pairs.labels) == sorted((values >= 4).astype(np.float32))

    def test_by_sampled_negatives(self, make):
        experiment = make("ranking", "task.threshold=null", "task.num_negatives=2")
        task = experiment.task
        for split, known in (("train", "train"), ("valid", "valid"), ("test", "test")):
            pairs = task.pairs(split)
            assert pairs.labels.mean() == pytest.approx(1 / 3)
            history = experiment.dataset.histories().before(known)
            met = [set(history.items[history.of(user)].tolist()) for user in range(history.num_users)]
            negatives = pairs.labels == 0
            assert not any(
                int(item) in met[int(user)]
                for user, item in zip(pairs.users[negatives], pairs.items[negatives], strict=True)
            )
        assert len(batch_of(awake(experiment), 4).labels) > 4
        scored = RankingScorer(task, experiment.backbone, "test").score_pairs(task.pairs("test"))
        assert np.isfinite(scored).all()

    def test_by_impressions(self, make, little_world):
        experiment = make("ranking", "task.threshold=null", data=little_world)
        pairs = experiment.task.pairs("train")
        shown = np.array(experiment.dataset.impressions["split"][:])
        assert len(pairs) == int((shown == 0).sum())
        assert 0 < pairs.labels.mean() < 1

    def test_a_threshold_that_leaves_nothing_to_learn(self, make, tmp_path):
        events = [{**row, "stars": ""} for row in shop_events(5)]
        with pytest.raises(DataError, match=r"threshold|value"):
            make("ranking", data=prepare_shop(tmp_path, events)).task.examples()


class TestCache:
    def test_trees_are_made_once(self, make, tmp_path, monkeypatch):
        experiment = make("ranking")
        first = experiment.task.examples()
        files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cache").iterdir()}
        assert len(files) == 1
        monkeypatch.setattr(type(experiment.task.writer), "tree", lambda *_: pytest.fail("made again"))
        again = make("ranking").task.examples()
        assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cache").iterdir()} == files
        assert again[0] == first[0]

    @pytest.mark.parametrize("word", ["task.max_events=5", "task.history_dropout=0.1", "seed=3"])
    def test_other_settings_make_other_trees(self, make, tmp_path, word):
        make("ranking").task.examples()
        make("ranking", word).task.examples()
        assert len(list((tmp_path / "run" / "cache").iterdir())) == 2

    def test_a_failure_leaves_no_file(self, make, tmp_path, monkeypatch):
        def fails(*_):
            raise KeyboardInterrupt

        experiment = make("ranking")
        with monkeypatch.context() as patched:
            patched.setattr(type(experiment.task.writer), "tree", fails)
            with pytest.raises(KeyboardInterrupt):
                experiment.task.examples()
        assert not list((tmp_path / "run" / "cache").glob("*.arrow"))
        assert len(experiment.task.examples()) > 0


def test_lengths_are_the_trees(ready):
    task, _, _ = ready
    rows = task.examples()
    assert list(task.lengths()) == [len(row["ids"]) for row in rows]


def test_candidate_lists(ready):
    task, backbone, experiment = ready
    queries = experiment.dataset.histories().queries("test").take(np.arange(3))
    candidates = np.array([[3, 5, -1], [7, -1, -1], [1, 2, 4]], dtype=np.int32)
    scorer = RankingScorer(task, backbone, "test")
    found = scorer.score_candidates(queries, candidates)
    assert (np.isneginf(found) == (candidates < 0)).all()
    users = queries.users[[0, 2]]
    lengths = np.diff(queries.history.offsets)[users]
    pairs = Judgements(queries.history, users, np.array([5, 4], np.int32), np.zeros(2, np.float32), lengths)
    np.testing.assert_allclose(found[[0, 2], [1, 2]], scorer.score_pairs(pairs), atol=1e-5)


def test_numbers_can_be_left_to_the_words(make):
    experiment = make("ranking", "task.numbers=false")
    assert isinstance(experiment.task, Ranking)
    assert experiment.task.numbers is None
    task = awake(experiment)
    batch = batch_of(task, 2)
    with torch.no_grad():
        before = task.logits(experiment.backbone, batch)
        batch.numbers.fill_(9.0)
        assert torch.equal(task.logits(experiment.backbone, batch), before)
