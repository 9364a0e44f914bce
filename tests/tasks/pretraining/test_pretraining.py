"""Pretraining, end to end: every family learns, resumes, is found again, and says what it cannot read."""

import json
import shutil

import numpy as np
import pytest
import torch

from m6rec.assemble import build, open_experiment, train_run
from m6rec.backbones.resolve import resolve_backbone
from m6rec.data.dialogues import read_dialogues
from m6rec.data.histories import SPLIT_CODES
from m6rec.data.manifest import Manifest
from m6rec.errors import BackboneError, ConfigError, DataError, HubError
from m6rec.hub.staging import stage
from m6rec.recipe import read_recipe
from m6rec.runs import read_recipe_tree
from m6rec.text.prompt import UserText
from tests.conftest import PRETRAINED

FAMILIES = ["llama", "bert", "t5"]


@pytest.fixture
def make(little_world, tiny_folder, tmp_path):
    """Build `pretrain` over the little world, or over other data: ``make("task.dense=false", data=...)``."""

    def made(*words, data=little_world):
        places = [f"data={data}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", "task.row_tokens=96"]
        return build(read_recipe("pretrain", [*places, *words])).task

    return made


@pytest.mark.parametrize("model_type", FAMILIES)
class TestFamilies:
    def test_the_loss_falls(self, pretrained, model_type):
        lines = (pretrained(model_type) / "train_log.jsonl").read_text().splitlines()
        found = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
        assert found[-1] < found[0] - 0.5

    def test_it_measures_itself_and_its_run_is_a_backbone(self, pretrained, model_type):
        experiment = open_experiment(pretrained(model_type))
        found = experiment.task.measure(experiment.backbone, "test", at_most=30)
        assert found["perplexity"] == pytest.approx(np.exp(found["nats_per_token"]))
        assert found["nats_per_title"] > found["nats_per_token[titles]"] > 0
        again = experiment.task.measure(resolve_backbone(pretrained(model_type)), "test", at_most=30)
        assert again == pytest.approx(found, rel=1e-4)


def test_other_tasks_stand_on_a_pretrained_run(pretrained, little_world, tmp_path):
    small = ["task.dim=8", "task.whiten=8", "task.tower_width=8", "task.pooled.width=8", "task.pooled.num_heads=2"]
    places = [f"data={little_world}", f"out={tmp_path / 'next'}", f"backbone.name={pretrained('llama')}"]
    experiment, result = train_run(read_recipe("retrieval", [*places, *small, "training.max_steps=2"]))
    assert (experiment.backbone.family, result.steps) == ("causal", 2)


def test_resumed_equals_uninterrupted(little_world, tmp_path):
    words = [f"data={little_world}", *PRETRAINED, "training.max_steps=4", "training.save_every=2"]
    whole, _ = train_run(read_recipe("pretrain-small", [*words, f"out={tmp_path / 'whole'}"]))
    recipe = read_recipe("pretrain-small", [*words, f"out={tmp_path / 'parts'}"])
    train_run(recipe)
    shutil.rmtree(max((tmp_path / "parts" / "checkpoints").iterdir()))
    parts, result = train_run(recipe, resume=True)
    assert result.steps == 4
    for one, other in zip(whole.backbone.parameters(), parts.backbone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_adapter_of_one_domain_starts_another_run(little_world, tiny_folder, tmp_path):
    places = [f"data={little_world}", f"backbone.name={tiny_folder}", "tuner.name=lora", "task.row_tokens=96"]
    words = [*places, "training.max_steps=2", "training.batch_size=4"]
    train_run(read_recipe("pretrain", [*words, f"out={tmp_path / 'first'}"]))
    with pytest.raises(BackboneError, match="start="):
        resolve_backbone(tmp_path / "first")
    recipe = read_recipe("pretrain", [*words, f"out={tmp_path / 'second'}", f"start={tmp_path / 'first'}"])
    assert train_run(recipe)[1].steps == 2


def test_a_pruned_vocabulary_is_the_runs_own(little_world, tiny_folder, tmp_path):
    words = [f"data={little_world}", f"backbone.name={tiny_folder}", "backbone.vocabulary=used", "task.row_tokens=96"]
    words += [f"out={tmp_path / 'run'}", "training.max_steps=2", "training.batch_size=2"]
    train_run(read_recipe("pretrain", words))
    whole, pruned = (len(resolve_backbone(folder).tokenizer) for folder in (tiny_folder, tmp_path / "run"))
    assert pruned < whole
    assert len(open_experiment(tmp_path / "run").backbone.tokenizer) == pruned
    # Nobody else has it: it goes to the Hub beside the run, or the run stays here.
    with pytest.raises(HubError, match="--base"):
        stage(tmp_path / "run", tmp_path / "staged")
    stage(tmp_path / "run", tmp_path / "staged", base="me/pruned")
    backbone = read_recipe_tree(tmp_path / "staged")["backbone"]
    assert (backbone["name"], backbone["vocabulary"]) == ("me/pruned", "whole")


class TestWhatIsRead:
    def test_a_history_reads_as_the_prompt_shows_it(self, make):
        task = make("task.sources=[behaviour]", "task.row_tokens=384")
        data, history = task._corpus.dataset, task._corpus.dataset.histories().before("train")
        user = int(np.flatnonzero(np.diff(history.offsets))[0])
        events = [data.event_record(int(row)) for row in history.rows[history.of(user)]]
        layout = task._corpus.prompt.layout(task.renderer, UserText(profile=data.user_record(user), events=events))
        control = set(task.tokenizer.control_ids.values())
        expected = [token for token in task.tokenizer.layout(layout).ids.tolist() if token not in control]
        found = [token for document in task._store for piece in document.pieces for token in piece.tolist()]
        assert found[: len(expected)] == expected

    def test_nothing_that_is_held_out(self, make):
        task = make()
        data = task._corpus.dataset
        for split, code in SPLIT_CODES.items():
            kinds = [document.kind for document in task._corpus.documents(split)]
            assert kinds.count("reviews") == sum(row["split"] == code for row in data.reviews)
            assert kinds.count("dialogues") == len(read_dialogues(data, split))
        rows = [row for user in range(data.num_users) for row in task._corpus._rows("train")(user)]
        assert set(data.interactions.select(rows)["split"]) == {0}

    def test_blanks_change_by_the_epoch_and_not_by_the_asking(self, make):
        task = make("task.infilling=1")
        first, again = (task.collate(task.examples()[:2]) for _ in range(2))
        task.refresh(None, 1)
        other = task.collate(task.examples()[:2])
        assert torch.equal(first.tokens.ids, again.tokens.ids)
        assert first.tokens.ids.shape != other.tokens.ids.shape or not torch.equal(first.tokens.ids, other.tokens.ids)

    def test_rows_fit_and_their_lengths_bound_them(self, make):
        task = make()
        batch = task.collate(task.examples())
        filled = batch.tokens.keep.sum(1)
        assert (filled <= torch.tensor(task.lengths())).all()
        assert max(task.lengths()) <= 96
        assert batch.tokens.positions.max() < 96

    def test_text_files_are_read_and_partly_held_out(self, make, tmp_path):
        lines = [f"Sentence number {n} of a file. It has a second one." for n in range(200)]
        (tmp_path / "notes.txt").write_text("\n".join(lines), encoding="utf-8")
        task = make("task.sources=[]", f"task.files=[{tmp_path / 'notes.txt'}]")
        counts = [sum(1 for _ in task._corpus.documents(split)) for split in ("train", "valid", "test")]
        assert counts == [192, 4, 4]


class TestBadInput:
    def test_a_missing_text_file(self, make, tmp_path):
        with pytest.raises(DataError, match=r"gone.txt, which is not there"):
            make(f"task.files=[{tmp_path / 'gone.txt'}]")

    def test_a_file_that_is_no_text(self, make, tmp_path):
        (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00\x80")
        with pytest.raises(DataError, match="no UTF-8 text"):
            make("task.sources=[]", f"task.files=[{tmp_path / 'picture.txt'}]")

    def test_an_empty_corpus(self, make, shop, tmp_path):
        assert Manifest.read(shop).file("reviews.parquet") is None
        with pytest.raises(DataError, match="got no text"):
            make("task.sources=[reviews]", data=shop)
        recipe = ["task.sources=[reviews]", f"data={shop}", f"out={tmp_path / 'new'}"]
        with pytest.raises(DataError, match="no text to train a tokenizer on"):
            build(read_recipe("pretrain-small", recipe))

    @pytest.mark.parametrize("word", ["task.infilling=1.5", "task.row_tokens=4", "task.span=0.5", "task.sources=[]"])
    def test_an_impossible_setting(self, make, word):
        with pytest.raises(ConfigError, match=word.partition("=")[0].removeprefix("task.")):
            make(word)
