"""The model card: what a stranger reads before loading, and what the Hub reads at its head."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from m6rec.errors import HubError
from m6rec.hub.transfer import prepare


@pytest.fixture
def card(tmp_path):
    """Prepare a run and return its card as the Hub's own client reads it, and its text."""

    def read(run, **options):
        folder = tmp_path / "look"
        prepare(run, folder, "me/run", **{"base": "me/tiny", **options})
        text = (folder / "README.md").read_text(encoding="utf-8")
        return ModelCard(text), text

    return read


@pytest.fixture
def report(ranking_run, tmp_path):
    """Write what ``m6rec evaluate --json`` would, with round figures; return its path."""
    own = {
        "recipe": yaml.safe_load((ranking_run / "recipe.yaml").read_text()),
        "data": json.loads((ranking_run / "run.json").read_text())["data"],
        "protocol": {"pairs": 60, "split": {"rule": "leave-one-out", "cutoffs": []}, "event_ties": "random"},
        "report": {
            "title": "csv, test",
            "rows": {
                "ours": {"metrics": {"auc": 0.625, "uauc": None, "recall@10": 0.5, "recall@20": 0.75}},
                "rate": {"metrics": {"auc": 0.5, "uauc": None, "recall@10": 0.25, "recall@20": 0.5}},
            },
        },
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(own))
    return path


def test_a_ranker_says_what_it_is_and_how_to_load_it(card, ranking_run):
    read, text = card(ranking_run)
    assert (read.data.base_model, read.data.library_name) == ("me/tiny", "m6rec")
    assert set(read.data.tags) == {"m6rec", "recommender-system", "ranking", "lora", "peft"}
    assert read.data.to_dict()["base_model_relation"] == "adapter"
    for words in (
        'rec = m6rec.load("me/run")',
        'PeftModel.from_pretrained(AutoModel.from_pretrained("me/tiny"), "me/run")',
        "`csv`: users 60, items 36, events 571, test events 60. Split by leave-one-out",
        "| lora | 3,200 |",
        "everybody who loads this can read",
        "titles and fields of 36 items",
        "None were given",
    ):
        assert words in text
    assert "\n\n\n" not in text


def test_a_retriever_without_an_adapter_of_pefts(card, retrieval_run):
    read, text = card(retrieval_run, catalogue=False)
    assert "peft" not in [*read.data.tags, *text.lower().split()]
    assert "rec.catalog.add([" in text
    assert "rec.recommend(" in text
    assert "the catalogue was left out" in text
    assert "\n\n\n" not in text


def test_full_fine_tuning_is_no_adapter(card, ranking_run, tmp_path):
    run = Path(shutil.copytree(ranking_run, tmp_path / "run"))
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tuner": "full"}))
    assert card(run)[0].data.to_dict()["base_model_relation"] == "finetune"


def test_figures_stand_with_their_protocol(card, ranking_run, report):
    read, text = card(ranking_run, figures=report)
    (auc, recall) = read.data.eval_results
    assert (auc.metric_type, auc.metric_value, auc.dataset_name) == ("auc", 0.625, "csv")
    assert (recall.metric_type, recall.metric_value) == ("recall@10", 0.5)
    assert "| csv, test | auc | uauc | recall@10 |\n| --- | --- | --- | --- |\n| ours | 0.6250 | - | 0.5000 |" in text
    assert "| rate | 0.5000 | - | 0.2500 |" in text
    assert "Protocol: pairs 60, split (rule leave-one-out), event ties random." in text


@pytest.mark.parametrize("part", ["seed", "task", "tuner", "data", "nothing"])
def test_figures_of_another_run_are_refused(card, ranking_run, report, part):
    found = json.loads(report.read_text())
    if part == "data":
        found["data"]["hash"] = "other"
    elif part == "nothing":
        found["recipe"] = {}
    else:
        found["recipe"][part] = "other"
    report.write_text(json.dumps(found))
    with pytest.raises(HubError, match="evaluation of another run"):
        card(ranking_run, figures=report)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_something_else_than_an_evaluation(card, ranking_run, tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(HubError, match="not readable as an evaluation"):
        card(ranking_run, figures=tmp_path / "report.json")
    assert not (tmp_path / "look").exists()
