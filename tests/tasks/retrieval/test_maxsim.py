"""Retrieval by MaxSim: the textbook's score and loss, one pass equal to one by one, and served as it is evaluated."""

import asyncio

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from m6rec.api import load
from m6rec.assemble import open_experiment, open_run, train_run
from m6rec.errors import ConfigError, RunError
from m6rec.recipe import read_recipe
from m6rec.serving.executors.local import LocalExecutor
from m6rec.serving.graphs import recommender_graph
from m6rec.tasks.retrieval.maxsim import MaxSimConfig
from m6rec.tasks.retrieval.token_space import TokenSpace
from m6rec.tasks.retrieval.token_vectors import seen_tokens
from m6rec.tasks.retrieval.windows import Window, window
from m6rec.workflows.comparison import compare_reranked, compare_run
from m6rec.workflows.mining import MinerPlan
from tests.little_shop import SMALL

NAME = "retrieval-maxsim"
EMPTY = Window(0, *(np.zeros(0, dtype=np.int64) for _ in range(4)))


def batch_of(experiment, count=5):
    task = experiment.task
    task.refresh(experiment.backbone, 0)
    return task.collate([task.examples()[index] for index in range(count)])


def by_hand(user, item):
    """Return the sum over a user's vectors of the best inner product with an item's: ColBERT, equation 3."""
    return sum(max(float(token @ other) for other in item) for token in user)


@pytest.fixture(scope="module")
def finished(shop, tiny_folder, tmp_path_factory):
    """Return the folder of a finished run; read only."""
    out = tmp_path_factory.mktemp("maxsim") / "run"
    train_run(read_recipe(NAME, [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *SMALL[NAME]]))
    return out


class TestLoss:
    def test_it_is_the_textbooks(self, make):
        experiment = make(NAME, "task.num_negatives=4")
        task, backbone, batch = experiment.task.eval(), experiment.backbone.eval(), batch_of(experiment)
        torch.manual_seed(0)
        columns = task.columns(batch)
        texts = task.encoder.batch(backbone, [task.material.tokens[column] for column in columns.tolist()])
        with torch.no_grad():
            users, items = task.readout(backbone, batch.tokens), task.readout(backbone, texts)
        counts = torch.bincount(torch.from_numpy(task.material.train.items[task.material.train.items >= 0]).long())
        log_q, losses = torch.log((counts + 1) / (counts.sum() + len(counts))), []
        for row, place, target, met in zip(batch.rows, batch.columns, batch.targets, batch.segments, strict=True):
            tokens, moment = batch.tokens, batch.tokens.blocks[batch.rows[len(losses)], place]
            own = [
                users[row, column]
                for column in range(tokens.ids.shape[1])
                if tokens.keep[row, column]
                and (column == place or (tokens.branches[row, column] == 0 and tokens.blocks[row, column] <= moment))
            ]
            scores = []
            for number, item in enumerate(columns.tolist()):
                score = by_hand(own, items[number][texts.keep[number]]) / len(own) / 0.05 - float(log_q[item])
                scores.append(score if item == target or item not in met.tolist() else -torch.inf)
            right = columns.tolist().index(int(target))
            losses.append(F.cross_entropy(torch.tensor(scores)[None], torch.tensor([right])))
        torch.manual_seed(0)
        found = task.loss(backbone, batch)
        torch.testing.assert_close(found.value, torch.stack(losses).mean(), atol=2e-4, rtol=1e-4)
        assert (found.weight, found.figures["temperature"]) == (len(losses), pytest.approx(0.05))

    def test_it_falls_and_teaches_the_adapter(self, make):
        experiment = make(NAME)
        batch, values = batch_of(experiment), []
        parts = (experiment.task, experiment.backbone)
        trained = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, 1e-2)
        for _ in range(10):
            loss = experiment.task.train().loss(experiment.backbone.train(), batch)
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
            values.append(loss.value.item())
        assert values[-1] < 0.85 * values[0]
        touched = [name for name, value in experiment.tuner.parameters().items() if value.grad.any()]
        assert any("lora" in name for name in touched)


class TestOnePass:
    def test_every_moment_of_a_window_has_the_tokens_of_its_prefix(self, make):
        experiment = make(NAME)
        task, backbone, dense = experiment.task.eval(), experiment.backbone.eval(), batch_of(experiment, 4)
        material, seen, number = task.material, seen_tokens(dense), 0
        with torch.no_grad():
            vectors = task.readout(backbone, dense.tokens)
        for example in (task.examples()[index] for index in range(4)):
            for place in range(example.first_target, len(example)):
                if example.segments[place] >= material.table.num_items:
                    continue
                start, stop = int(example.events[0]), int(example.events[place])
                prefix = window(material.train, material.windows.segments, example.user, start, stop)
                alone = task.states(backbone, [prefix], material.record)[0]
                expected = vectors[dense.rows[number]][seen[number]]
                scale = len(expected) * 0.05
                torch.testing.assert_close(alone[alone.any(-1)] * scale, expected, atol=1e-4, rtol=1e-4)
                number += 1
        assert number == len(dense.targets) > 10

    def test_together_equals_one_by_one(self, make):
        experiment = make(NAME)
        task, backbone = experiment.task, experiment.backbone.eval()
        windows = [task.examples()[0], EMPTY, task.examples()[7]]
        together = task.states(backbone, windows, task.material.record)
        for found, one in zip(together, windows, strict=True):
            alone = task.states(backbone, [one], task.material.record)[0]
            torch.testing.assert_close(found[found.any(-1)], alone, atol=1e-4, rtol=1e-4)
        assert int(together[1].any(-1).sum()) == 2  # [BOS'] and [EOS']


class TestSpace:
    def space(self, near=8):
        found = F.normalize(torch.randn(30, 5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
        lengths = torch.arange(30) % 5 + 1
        return TokenSpace((found * (torch.arange(5) < lengths[:, None])[..., None]).half(), near)

    def users(self):
        found = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
        found[1, 2:] = 0
        return found

    def test_exact_scores_are_the_textbooks(self, monkeypatch):
        space, users = self.space(), self.users()
        expected = [
            [by_hand(user[user.any(-1)], item[item.any(-1)]) for item in space.vectors.float()] for user in users
        ]
        torch.testing.assert_close(space.maxsim(users), torch.tensor(expected), atol=1e-5, rtol=1e-5)
        monkeypatch.setattr("m6rec.tasks.retrieval.token_space.PRODUCTS_AT_ONCE", 100)
        torch.testing.assert_close(space.maxsim(users), torch.tensor(expected), atol=1e-5, rtol=1e-5)
        some = np.array([7, 3, 3])
        np.testing.assert_allclose(space.scores(users[1], some), np.array(expected)[1, some], rtol=1e-5)

    def test_an_index_that_orders_everybody_is_exact(self, monkeypatch):
        monkeypatch.setattr("m6rec.indexes.multivector.VECTORS_AT_ONCE", 20)
        monkeypatch.setattr("m6rec.tasks.retrieval.token_space.ITEMS_AT_ONCE", 7)
        space, users, places = self.space(near=200), self.users(), np.arange(0, 30, 2)
        scores, order = space.maxsim(users, torch.from_numpy(places)).topk(6)
        found = space.index("exact", places).search(users.numpy(), 6)
        np.testing.assert_array_equal(found.ids, places[order.numpy()])
        np.testing.assert_allclose(found.scores, scores, rtol=1e-5)

    def test_an_index_gives_as_many_as_there_are(self):
        # All that is near belongs to few items.
        found = self.space(near=1).index("exact", np.arange(30)).search(self.users().numpy(), 30).ids
        np.testing.assert_array_equal(np.sort(found), np.tile(np.arange(30), (4, 1)))


class TestServed:
    def test_a_run_recommends_what_it_is_evaluated_by(self, finished):
        experiment, recommender = open_experiment(finished), load(finished)
        queries = experiment.dataset.histories().queries("test")
        scores = experiment.task.scorer(experiment.backbone).score(queries)
        some = experiment.task.scorer(experiment.backbone).score(queries.take(np.arange(3)))
        np.testing.assert_allclose(scores[:3], some, atol=1e-3)
        keys, history = experiment.dataset.items["key"][:], queries.history
        for row, user in enumerate(queries.users[:6].tolist()):
            events = [experiment.dataset.event_record(int(number)) for number in history.rows[history.of(user)]]
            for event, item in zip(events, history.items[history.of(user)].tolist(), strict=True):
                if item >= 0:
                    event["item"] = keys[item]
            found = recommender.recommend(events, k=36, exclude_history=False)
            expected = {key: float(scores[row, number]) for number, key in enumerate(keys)}
            assert {item.id: item.score for item in found} == pytest.approx(expected, abs=1e-3)

    def test_what_is_saved_is_what_was_trained(self, make, shop, tmp_path, tiny_folder):
        words = [f"data={shop}", f"out={tmp_path / 'saved'}", f"backbone.name={tiny_folder}", *SMALL[NAME]]
        experiment, _ = train_run(read_recipe(NAME, words))
        restored, run = open_experiment(tmp_path / "saved"), open_run(tmp_path / "saved")
        queries = experiment.dataset.histories().queries("test")
        trained = experiment.task.scorer(experiment.backbone).score(queries)
        assert np.array_equal(restored.task.scorer(restored.backbone).score(queries), trained)
        for part in (restored, run):
            assert torch.equal(part.task.space().vectors, experiment.task.space().vectors)
        assert experiment.task.space().vectors.dtype == torch.float16
        with pytest.raises(RunError, match="loaded for inference"):
            run.task.examples()

    def test_items_come_change_and_go(self, finished):
        recommender = load(finished)

        def scores():
            found = recommender.recommend(["red shirt", "blue shoes"], k=99, exclude_history=False)
            return {item.id: item.score for item in found}

        before = scores()
        recommender.catalog.add([{"id": "new", "title": "a soft summer lamp at ten", "category": "lamps"}])
        added = scores()
        assert added.pop("new") < 1 / 0.05
        assert added == pytest.approx(before, abs=1e-4)
        recommender.catalog.change([{"id": "new", "title": "red shirt", "brand": "red", "category": "shirts"}])
        changed = scores()
        assert changed["new"] == pytest.approx(changed["g00"], abs=1e-2)  # it reads the same
        recommender.catalog.remove(["new"])
        assert scores() == pytest.approx(before, abs=1e-4)

    def test_anybody_is_answered(self, finished):
        recommender = load(finished)
        for history in ("", ["red shirt"] * 500, ["something that no catalogue holds"]):
            assert len(recommender.recommend(history, k=3)) == 3

    def test_requests_together_equal_one_by_one(self, finished):
        recommender = load(finished)
        graph, histories = recommender_graph(recommender), ["red shirt", "red shirt; blue shoes; green book", ""]

        async def asked():
            executor = LocalExecutor(graph)
            await executor.start()
            requests = [{"history": history, "k": 4, "diversity": 0.3} for history in [*histories, histories[1]]]
            requests[-1]["allow"] = ["g05", "g09"]
            answers = [executor.submit(request, kind="recommend", deadline_ms=60_000) for request in requests]
            found = await asyncio.gather(*answers)
            await executor.drain(5)
            return found

        *free, allowed = asyncio.run(asked())
        assert {item["id"] for item in allowed["items"]} == {"g05", "g09"}
        for history, answer in zip(histories, free, strict=True):
            scores = {item.id: item.score for item in recommender.recommend(history, k=36)}
            assert len(answer["items"]) == 4
            for item in answer["items"]:
                assert item["score"] == pytest.approx(scores[item["id"]], abs=1e-3)


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "part"),
        [
            ({"temperature": 0.0}, "temperature"),
            ({"max_events": 1}, "max_events"),
            ({"item_tokens": 0}, "item_tokens"),
        ],
    )
    def test_impossible_settings(self, settings, part):
        with pytest.raises(ConfigError, match=part):
            MaxSimConfig(**settings)

    def test_settings_of_vectors_that_tokens_have_not(self, make):
        with pytest.raises(ConfigError, match="neighbours"):
            make(NAME, "task.neighbours.cooccurrence=1")

    def test_lessons_and_mining_want_one_vector(self, finished, shop):
        from m6rec.training.dense_config import HardConfig

        with pytest.raises(RunError, match="mine"):
            MinerPlan(str(finished), str(shop), None, HardConfig()).open(None)

    def test_it_is_retrieved_from_and_then_ranked(self, finished, ranking_run):
        report = compare_reranked(open_experiment(finished), open_experiment(ranking_run), depth=10)
        assert len(report.rows) == 2
        assert compare_run(open_experiment(finished), "valid").report.rows[0].means()["ndcg@10"] >= 0
