"""Mining and pseudo labels: what is found, what is never found, and that stopping changes nothing."""

import numpy as np
import pytest

from m6rec.assemble import open_experiment
from m6rec.training.dense_config import PseudoConfig
from m6rec.training.judges import FusedJudge, Ranker, examine
from m6rec.training.mining import Miner, Retriever, look, target_events, validation_lists
from m6rec.training.moments import Moments
from m6rec.training.pseudo import pseudo_label, threshold_for

DEPTH = 8


@pytest.fixture(scope="module")
def experiment(retrieval_run):
    return open_experiment(retrieval_run)


@pytest.fixture(scope="module")
def retriever(experiment):
    return Retriever(experiment.task, experiment.backbone)


@pytest.fixture(scope="module")
def judge(experiment):
    return FusedJudge(experiment.task.space(), experiment.task.material.train)


@pytest.fixture(scope="module")
def lists(retriever, judge, tmp_path_factory):
    return Miner(retriever, judge, DEPTH).mine(tmp_path_factory.mktemp("lists"))


def equal(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


class TestMining:
    def test_every_position_has_the_nearest_that_nobody_took(self, experiment, retriever, lists):
        material = experiment.task.material
        expected = target_events(list(experiment.task.examples()), material.table.num_items)
        assert lists.events.tolist() == expected.tolist()
        assert lists.ids[:, 0].tolist() == material.train.items[expected].tolist()
        users = material.train.users
        for row in range(0, len(lists), 17):
            own = set(material.train.items[material.train.of(users[lists.events[row]])].tolist())
            scores = lists.states[row].astype(np.float32) @ retriever.items.T
            order = [item for item in np.argsort(-scores, kind="stable").tolist()[: 2 * DEPTH] if item not in own][
                :DEPTH
            ]
            found = lists.ids[row, 1:]
            assert set(found[found >= 0].tolist()) == set(order)

    def test_a_state_in_one_pass_is_the_state_of_its_moment(self, experiment, retriever, lists):
        material = experiment.task.material
        # Of users whose events fit one window: later windows of the others begin in the middle.
        users = material.train.users[lists.events]
        rows = np.flatnonzero(np.diff(material.train.offsets)[users] <= material.max_events)[::9]
        moments = Moments.before(material.train, lists.events[rows])
        alone = retriever.at(moments, material.windows.segments)
        np.testing.assert_allclose(alone, lists.states[rows], atol=2e-3)

    def test_interrupted_mining_goes_on_to_the_same_lists(self, retriever, judge, lists, tmp_path, monkeypatch):
        monkeypatch.setattr("m6rec.training.mining.WINDOWS_A_PART", 16)
        whole, calls = Miner(retriever, judge, DEPTH).mine(tmp_path / "whole"), []
        assert whole.ids.tolist() == lists.ids.tolist()

        def stops(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return numbers(*arguments)

        numbers = judge.numbers
        monkeypatch.setattr(judge, "numbers", stops)
        with pytest.raises(KeyboardInterrupt):
            Miner(retriever, judge, DEPTH).mine(tmp_path / "cut")
        assert len(list((tmp_path / "cut").glob("part-*"))) == 2
        assert equal(Miner(retriever, judge, DEPTH).mine(tmp_path / "cut"), whole)

    def test_shards_find_the_same(self, experiment, retriever, judge, lists, tmp_path):
        sharded = Retriever(experiment.task, experiment.backbone, shards=3, folder=tmp_path / "shards")
        assert len(list((tmp_path / "shards").glob("shard-*"))) == 3
        assert equal(Miner(sharded, judge, DEPTH).mine(tmp_path / "lists"), lists)

    def test_all_that_is_near_has_been_taken(self, retriever, judge, monkeypatch):
        monkeypatch.setattr(retriever.taken, "contain", lambda users, items: items >= 0)
        material = retriever.task.material
        moments = Moments.before(material.train, np.array([1, 2]))
        states = retriever.at(moments, material.windows.segments)
        found = look(retriever, judge, moments, states, np.array([3, 4]), DEPTH)
        assert (found.ids[:, 1:] == -1).all()
        assert np.isfinite(found.numbers).all()


class TestPseudo:
    @pytest.fixture(scope="class")
    def ranker(self, experiment, retriever, judge):
        queries = experiment.dataset.histories().queries("valid")
        validation, exam = validation_lists(retriever, judge, queries, DEPTH)
        ranker = Ranker(judge.start)
        examine(ranker, exam)
        return ranker, validation

    def labels(self, retriever, judge, ranker, **settings):
        config = PseudoConfig(**{"share": 0.5, "cap": 1000, **settings})
        return pseudo_label(retriever, judge, *ranker, config, DEPTH, seed=0)

    def test_labels_are_new_to_their_users_and_stand_last(self, retriever, judge, ranker):
        found, taken = self.labels(retriever, judge, ranker), retriever.taken
        assert len(found.windows) == len(found.lists) > 10
        for window in found.windows:
            label = int(window.segments[-1])
            assert found.lists.ids[window.row, 0] == label
            assert label not in found.lists.ids[window.row, 1:]
            assert not taken.contain(np.array([window.user]), np.array([[label]])).any()
            assert window.first_target == len(window) - 1
            segments = retriever.task.material.windows.segments
            assert window.segments[:-1].tolist() == segments[window.events[:-1]].tolist()
        assert len(target_events(found.windows, len(retriever.items))) == len(found.windows)

    def test_sub_histories_are_more_of_them(self, retriever, judge, ranker):
        whole, more = (self.labels(retriever, judge, ranker, share=1.0, crops=crops) for crops in (0, 2))
        users = np.flatnonzero(np.diff(retriever.task.material.train.offsets))
        assert [window.user for window in whole.windows] == users.tolist()
        assert len(whole.windows) < len(more.windows) <= 3 * len(users)
        lengths = np.diff(retriever.task.material.train.offsets)
        assert all(len(window) - 1 <= lengths[window.user] for window in more.windows)

    def test_no_item_is_more_often_a_label_than_the_cap(self, retriever, judge, ranker):
        free, capped = (self.labels(retriever, judge, ranker, cap=cap) for cap in (1000, 2))
        counts = np.bincount(free.lists.ids[:, 0])
        assert counts.max() > 2
        assert np.bincount(capped.lists.ids[:, 0]).tolist() == np.minimum(counts, 2).tolist()

    def test_the_threshold_is_that_of_validation(self, retriever, judge, ranker):
        threshold, precision = threshold_for(*ranker, 0.25)
        sure = ranker[0].probabilities(ranker[1].numbers)
        best = np.where(ranker[1].ids >= 0, sure, 0).max(1)
        assert (best >= threshold).mean() == pytest.approx(0.25, abs=0.03)
        assert 0 <= precision <= 1
        assert threshold_for(ranker[0], ranker[1], 1.0)[0] <= threshold
        few, many = (self.labels(retriever, judge, ranker, share=share) for share in (0.1, 0.9))
        assert len(few.windows) < len(many.windows)
