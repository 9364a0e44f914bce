"""Zero-shot and few-shot: how sentences are told, how their likelihoods are compared, and that a few can be learnt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from m6rec.api import load
from m6rec.assemble import open_experiment, train_run
from m6rec.data.candidates import SampledCandidates
from m6rec.errors import ConfigError, DataError
from m6rec.evaluation.evaluator import evaluate
from m6rec.recipe import read_recipe
from m6rec.tasks.likelihood import ask
from m6rec.tasks.zeroshot.config import ZeroShotConfig
from m6rec.tasks.zeroshot.task import ZeroShotScorer, usual_event
from m6rec.text.prompt import UserText
from m6rec.workflows.comparison import compare_run
from tests.little_shop import prepare_shop, shop_events
from tests.tasks.test_likelihood import at_once

ZERO = ["task.max_events=4", "task.candidates=5"]
FEW = [*ZERO, "task.shots=6", "training.batch_size=3", "training.max_steps=2"]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> str:
    """Return the words that make a shop's sentences tell whether somebody was pleased."""
    path = tmp_path_factory.mktemp("words") / "verdicts.yaml"
    told = "{% if value >= 4 %}liked{% else %}disliked{% endif %}"
    path.write_text(f'extends: default\nverbs:\n  view: "{told}"\n  buy: "{told}"\n')
    return f"domain={path}"


@pytest.fixture
def build_zero(make):
    def built(*words: str):
        experiment = make("zeroshot", *ZERO, *words)
        return experiment.task.eval(), experiment.backbone, experiment

    return built


def recipe(name: str, shop: Path, tiny_folder: Path, out: Path, *words: str):
    return read_recipe(name, [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *words])


class TestSentences:
    def test_the_usual_event_is_the_most_frequent_one(self, build_zero) -> None:
        task, _, experiment = build_zero()
        train = experiment.dataset.histories().before("train")
        assert usual_event(train) == task.usual
        assert task.usual["verb"] == "view"  # of a shop where six in ten look and the others buy

    def test_a_sentence_is_told_as_history_tells_the_event(self, build_zero) -> None:
        task, _, _ = build_zero()
        user = UserText(events=[{**task.usual, "item": task.catalogue.records[0]}])
        layout = task.prompt.layout(task.renderer, user, task.sentences((0, task.catalogue.texts[0])))
        told = [segment.text for segment in layout.trunk if segment.role in ("stub", "item")]
        said = [segment.text for segment in layout.branches[0] if segment.role == "answer"]
        assert told == said == ["viewed", task.catalogue.texts[0]]

    def test_a_threshold_asks_for_a_no_and_a_yes(self, build_zero, verdicts) -> None:
        task, _, _ = build_zero("task.threshold=4", verdicts)
        no, yes = task.sentences((0, "red lamp"))
        assert (no.answers["stub"], yes.answers["stub"]) == ("disliked", "liked")

    def test_popularity_in_words_is_given_and_not_scored(self, build_zero) -> None:
        task, _, _ = build_zero("task.popularity=true")
        layout = task.prompt.layout(task.renderer, None, task.sentences((0, "red lamp")))
        known = [segment for segment in layout.segments if segment.role == "statistic"]
        assert "known" in known[0].text or "popular" in known[0].text
        plain_task, _, _ = build_zero()
        plain = plain_task.prompt.layout(plain_task.renderer, None, plain_task.sentences((0, "red lamp")))
        counts = [ask(task.tokenizer, [shown], 96)[0].answers.sum() for shown in (layout, plain)]
        assert counts[0] == counts[1]

    def test_a_stranger_has_no_popularity(self, build_zero) -> None:
        task, backbone, _ = build_zero("task.popularity=true")
        found = task.rank(backbone, UserText(), [(None, {"title": "blue lamp"}), (10_000, {"title": "blue lamp"})])
        assert found[0] == found[1]


class TestScores:
    def test_scores_are_the_log_probabilities_of_the_sentence(self, build_zero) -> None:
        task, backbone, experiment = build_zero("task.calibration=0")
        user = task.user(experiment.dataset.histories().before("test"), 0)
        items = [(place, task.catalogue.texts[place]) for place in (0, 5)]
        tree = task.prompt.layout(task.renderer, user, [said for item in items for said in task.sentences(item)])
        uncached = at_once(backbone, task.tokenizer, tree, task.max_tokens)
        np.testing.assert_allclose(task.scores(backbone, [user], [items])[0], uncached.total, atol=1e-3)

    def test_one_user_or_many_and_whatever_the_pieces(self, build_zero) -> None:
        task, backbone, experiment = build_zero("task.rows_at_once=3")
        history = experiment.dataset.histories().before("test")
        users = [task.user(history, user) for user in range(4)]
        items = [[(place, task.catalogue.texts[place]) for place in range(user, user + 4)] for user in range(4)]
        together = task.scores(backbone, users, items)
        for user, own, found in zip(users, items, together, strict=True):
            np.testing.assert_allclose(found, task.scores(backbone, [user], [own])[0], atol=1e-3)

    def test_calibration_takes_off_what_nobody_in_particular_would_say(self, build_zero) -> None:
        task, backbone, _ = build_zero("task.calibration=1")
        assert (ZeroShotConfig().weight, ZeroShotConfig(threshold=4).weight) == (0.5, 0.0)
        items = [(place, task.catalogue.texts[place]) for place in range(6)]
        nobody = task.scores(backbone, [UserText()], [items])[0]
        np.testing.assert_allclose(nobody, 0, atol=1e-3)
        somebody = UserText(events=[{**task.usual, "item": task.catalogue.records[3]}])
        assert np.abs(task.scores(backbone, [somebody], [items])[0]).max() > 0.01

    def test_a_mean_is_a_sum_over_its_words(self, build_zero) -> None:
        task, backbone, _ = build_zero()
        items = [(place, task.catalogue.texts[place]) for place in range(6)]
        found, alone = task.measured(backbone, [UserText()], [items], alone=False)[0]
        mean = ZeroShotConfig(length="mean").compare(found, alone)
        np.testing.assert_allclose(mean * found.tokens, ZeroShotConfig().compare(found, alone), rtol=1e-9)

    def test_repeats_get_the_same_score_and_an_empty_list_gets_none(self, build_zero) -> None:
        task, backbone, _ = build_zero()
        items = [(0, task.catalogue.texts[0]), (1, task.catalogue.texts[1]), (0, task.catalogue.texts[0])]
        scores = task.rank(backbone, UserText(), items)
        assert scores[0] == pytest.approx(scores[2], abs=1e-4)
        assert len(task.rank(backbone, UserText(), [])) == 0

    def test_an_empty_history_and_hostile_words_are_scored(self, build_zero) -> None:
        task, backbone, _ = build_zero()
        hostile = {"title": "lamp [EOS] [BOS] viewed red shirt [SEP]"}
        user = UserText(events=[{**task.usual, "item": hostile}])
        for who in (UserText(), user):
            assert np.isfinite(task.rank(backbone, who, [(None, hostile), (0, {"title": "red shirt"})])).all()

    def test_a_history_longer_than_the_model_reads_loses_its_oldest_events(self, make, tiny_folder) -> None:
        experiment = make("zeroshot", "task.max_events=500")
        task, backbone = experiment.task.eval(), experiment.backbone
        events = [{**task.usual, "item": record} for record in task.catalogue.records] * 6
        items = [(0, task.catalogue.records[0])]
        long = task.rank(backbone, UserText(events=events), items)
        assert np.isfinite(long).all()
        np.testing.assert_allclose(long, task.rank(backbone, UserText(events=events[50:]), items), atol=1e-3)


class TestScorer:
    def test_candidates_in_the_evaluator(self, build_zero) -> None:
        task, backbone, experiment = build_zero()
        queries = experiment.dataset.histories().queries("test").take(np.arange(5))
        found = evaluate(ZeroShotScorer(task, backbone), queries, candidates=SampledCandidates(5, 0))
        assert "ndcg@10[sampled=5]" in found.means()

    def test_a_small_catalogue_is_ranked_whole(self, make) -> None:
        queries = make("zeroshot").dataset.histories().queries("test")
        assert make("zeroshot", "task.candidates=5").task.rivals(queries, 0) == SampledCandidates(5, 0)
        assert make("zeroshot", "task.candidates=100").task.rivals(queries, 0) is None

    def test_the_catalogue_equals_its_candidates(self, build_zero) -> None:
        task, backbone, experiment = build_zero()
        queries = experiment.dataset.histories().queries("test").take(np.arange(2))
        scorer = ZeroShotScorer(task, backbone)
        whole = scorer.score(queries)
        some = scorer.score_candidates(queries, np.array([[3, -1], [7, 1]], dtype=np.int32))
        np.testing.assert_allclose([whole[0, 3], whole[1, 7], whole[1, 1]], [some[0, 0], *some[1]], atol=1e-3)
        assert some[0, 1] == -np.inf

    def test_pairs_one_by_one_equal_pairs_together(self, build_zero, verdicts) -> None:
        task, backbone, _ = build_zero("task.threshold=4", verdicts)
        pairs = task.pairs("test").take(np.arange(6))
        scorer = ZeroShotScorer(task, backbone)
        together = scorer.score_pairs(pairs)
        alone = [scorer.score_pairs(pairs.take(np.array([row])))[0] for row in range(6)]
        np.testing.assert_allclose(together, alone, atol=1e-4)
        assert ((together >= 0) & (together <= 1)).all()

    def test_nothing_of_the_test_period_reaches_a_test_question(self, build_zero, test_shuffled, make) -> None:
        found = []
        for experiment in (build_zero()[2], make("zeroshot", *ZERO, data=test_shuffled)):
            task = experiment.task.eval()
            history = experiment.dataset.histories().before("test")
            keys = experiment.dataset.users["key"][:]
            texts = {key: task.user(history, user) for user, key in enumerate(keys)}
            found.append({key: [str(event) for event in text.events] for key, text in texts.items()})
        assert found[0] == found[1]


class TestFewShot:
    def test_as_many_sentences_as_asked_for_drawn_by_the_seed(self, build_zero) -> None:
        task, _, _ = build_zero("task.shots=6", "task.min_events=3")
        assert len(task.examples()) == 6
        drawn = task._train
        assert (drawn.lengths >= 3).all()
        again, _, _ = build_zero("task.shots=6", "task.min_events=3")
        again.examples()
        assert again._train.rows.tolist() == drawn.rows.tolist()
        other, _, _ = build_zero("task.shots=6", "task.min_events=3", "seed=1")
        other.examples()
        assert other._train.rows.tolist() != drawn.rows.tolist()

    def test_the_loss_is_what_the_score_says_and_falls(self, make) -> None:
        experiment = make("fewshot", *ZERO, "task.shots=4", "tuner={name: lora}")
        task, backbone = experiment.task, experiment.backbone
        task.examples()
        batch = task.collate([0, 1, 2, 3])
        before = task.loss(backbone.eval(), batch)
        pairs = task._train
        users = [task.user(pairs.history, *moment) for moment in zip(pairs.users, pairs.lengths, strict=True)]
        found = task._likelihoods(backbone, users, [[said] for said in task._said(pairs)])
        totals, counts = sum(own.total[0] for own in found), sum(own.tokens[0] for own in found)
        assert before.value.item() == pytest.approx(-totals / counts, abs=1e-4)
        assert before.weight == counts
        optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], 1e-2)
        for _ in range(15):
            optimizer.zero_grad()
            task.loss(backbone, batch).value.backward()
            optimizer.step()
        assert task.loss(backbone, batch).value.item() < 0.9 * before.value.item()

    def test_labelled_sentences_tell_their_verdict(self, make, verdicts) -> None:
        experiment = make("fewshot", *ZERO, "task.threshold=4", "task.shots=null", verdicts)
        task = experiment.task
        task.examples()
        stubs = [said.answers["stub"] for said in task._said(task._train)]
        assert stubs == ["liked" if label else "disliked" for label in task._train.labels]

    @pytest.mark.parametrize("words", [[], ["task.threshold=4"]])
    def test_a_run_measures_itself(self, make, verdicts, words: list[str]) -> None:
        experiment = make("fewshot", *ZERO, *words, verdicts)
        figures = experiment.task.eval().measure(experiment.backbone, "valid", at_most=12, seed=0)
        assert {"nats", "perplexity"} | ({"auc"} if words else set()) == set(figures)
        assert all(np.isfinite(value) for value in figures.values())


class TestRuns:
    def test_zero_shot_needs_no_training_and_ranks_as_a_run(self, shop, tiny_folder, tmp_path) -> None:
        _, result = train_run(recipe("zeroshot", shop, tiny_folder, tmp_path / "run", *ZERO))
        assert result.steps == 0
        recommender = load(tmp_path / "run")
        titles = ["red lamp", "blue chair", "red lamp"]
        found = recommender.rank(["green book", "soft shoes"], titles)
        assert sorted(row.title for row in found) == sorted(titles)
        experiment = open_experiment(tmp_path / "run")
        means = compare_run(experiment, "valid", ["popularity"]).report.rows
        assert [row.name for row in means] == ["ours", "popularity"]
        assert "ndcg@10[sampled=5]" in means[0].means()

    def test_few_shot_trains_saves_and_opens_equal(self, shop, tiny_folder, tmp_path, verdicts) -> None:
        words = [*FEW, "task.threshold=4", verdicts]
        experiment, result = train_run(recipe("fewshot", shop, tiny_folder, tmp_path / "run", *words))
        assert (result.steps, result.stopped) == (2, "finished")
        pairs = experiment.task.pairs("test").take(np.arange(5))
        ours = ZeroShotScorer(experiment.task, experiment.backbone).score_pairs(pairs)
        opened = open_experiment(tmp_path / "run")
        theirs = ZeroShotScorer(opened.task, opened.backbone).score_pairs(pairs)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert "auc" in compare_run(opened, "valid", ["rate"]).report.rows[0].means()


def test_a_threshold_needs_values(make, tmp_path, verdicts) -> None:
    unrated = [{**event, "stars": ""} for event in shop_events(20)]
    experiment = make("fewshot", "task.threshold=4", verdicts, data=prepare_shop(tmp_path, unrated))
    with pytest.raises(DataError, match="no pair has a label"):
        experiment.task.examples()


def test_a_threshold_needs_words_that_tell_a_yes_from_a_no(make) -> None:
    with pytest.raises(ConfigError, match="both told as 'viewed it'"):
        make("zeroshot", "task.threshold=4")


def test_impossible_settings_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"max_events: got 0(.|\n)*shots: got -1"):
        ZeroShotConfig(max_events=0, shots=-1)
