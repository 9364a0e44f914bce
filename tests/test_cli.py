"""Every command, as a shell would run it: what it prints and writes, and how it says no."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from m6rec import cli
from tests.little_shop import SMALL, shop_events, write_shop


@pytest.fixture
def m6rec(monkeypatch, capfd):
    """Run a command in this process; return its exit status, what it printed and what it said on stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["m6rec", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def fails(m6rec):
    """Run a command that must fail; return its one message."""

    def run(*words):
        code, out, err = m6rec(*words)
        assert code == 2, err
        assert "Traceback" not in err
        assert err.count("error:") == 1
        assert out == ""
        return err

    return run


def small(recipe, tiny_folder):
    return [f"backbone.name={tiny_folder}", *SMALL[recipe]]


class TestPrepare:
    FLAGS = "--user who --item what --time when --event did --title label --category aisle"

    def test_a_log_with_columns_of_its_own(self, m6rec, tmp_path):
        from m6rec.data.store import Dataset

        log = write_shop(tmp_path, shop_events(20))
        words = [
            "csv",
            "--from",
            log,
            "--items",
            tmp_path / "goods.csv",
            *self.FLAGS.split(),
            "--out",
            tmp_path / "data",
        ]
        code, out, _ = m6rec("data", "prepare", *words)
        assert code == 0
        assert "20" in out
        assert "leave-one-out" in out
        dataset = Dataset.open(tmp_path / "data")
        record = dataset.item_record(dataset.items["key"][:].index("g09"))
        assert (record["title"], record["category"], record["maker"]) == ("blue lamp", "lamps", "blue")
        assert dataset.manifest.counts["users"] == 20

    def test_filters_are_told(self, m6rec, tmp_path):
        log = write_shop(tmp_path, shop_events(20))
        words = ["--from", log, *self.FLAGS.split()[:6], "--k-core=2", f"--out={tmp_path / 'data'}"]
        code, out, _ = m6rec("data", "prepare", "csv", *words)
        assert code == 0
        assert "filter" in out

    def test_help(self, m6rec):
        code, out, _ = m6rec("data", "prepare", "--help")
        assert code == 0
        assert "movielens-1m" in out
        code, out, _ = m6rec("data", "prepare", "csv", "--help")
        assert code == 0
        for part in ("--from", "--user", "--k-core", "--ties", "leave-one-out"):
            assert part in out

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            ("cvs --from log.csv --out d", "did you mean csv?"),
            ("csv --from log.csv", "--out"),
            ("csv --out d", "--from"),
            ("csv --from log.csv --out d --usr who", "mean --user"),
            ("csv --from nothing.csv --out d", "nothing.csv"),
            ("csv --from log.csv --out d --user nobody", "nobody"),
            ("csv --from log.csv --out d --split halves", "leave-one-out"),
            ("csv --from empty.csv --out d", "no event"),
        ],
    )
    def test_mistakes(self, fails, tmp_path, monkeypatch, words, part):
        write_shop(tmp_path, shop_events(3))
        (tmp_path / "empty.csv").write_text("user,item\n")
        monkeypatch.chdir(tmp_path)
        assert part in fails("data", "prepare", *words.split())
        assert not (tmp_path / "d").exists()


class TestTrain:
    def test_it_writes_a_run_and_says_how_long(self, m6rec, shop, tiny_folder, tmp_path):
        words = [f"data={shop}", f"out={tmp_path / 'run'}", *small("retrieval", tiny_folder), "training.max_steps=1"]
        code, out, _ = m6rec("train", "retrieval", *words)
        assert code == 0
        assert "1 steps" in out
        assert (tmp_path / "run" / "run.json").is_file()
        code, out, _ = m6rec("train", "retrieval", *words, "--resume")
        assert code == 0

    @pytest.mark.parametrize(
        ("words", "parts"),
        [
            ("retreival data=d out=o", ["did you mean retrieval"]),
            ("retrieval out=o", ["missing setting 'data'"]),
            ("retrieval data=d out=o task.dims=3 tuner.name=lorra", ["mean dim?", "mean lora?"]),
            ("retrieval data=nothing out=o", ["nothing"]),
            ("retrieval data=SHOP out=o backbone.name=./nothing", ["config.json"]),
            ("retrieval data=SHOP out=o backbone.name=TINY tuner.name=lora", ["would train nothing"]),
        ],
    )
    def test_mistakes(self, fails, shop, tiny_folder, tmp_path, monkeypatch, words, parts):
        monkeypatch.chdir(tmp_path)
        said = fails("train", *words.replace("SHOP", str(shop)).replace("TINY", str(tiny_folder)).split())
        for part in parts:
            assert part in said
        assert not (tmp_path / "o").exists()


class TestEvaluate:
    def test_retrieval_beside_baselines(self, m6rec, retrieval_run, shop, tmp_path):
        code, out, _ = m6rec(
            "evaluate", retrieval_run, "--baselines", "popularity, markov", "--json", tmp_path / "deep" / "report.json"
        )
        assert code == 0
        for name in ("ours", "popularity", "markov", "ndcg@10"):
            assert name in out
        found = json.loads((tmp_path / "deep" / "report.json").read_text())
        assert {"metrics", "protocol", "seed", "recipe", "data", "seconds", "versions"} <= set(found)
        assert 0 <= found["metrics"]["ndcg@10"] <= 1
        assert found["recipe"]["data"] == str(shop)
        assert found["data"]["counts"]["users"] == 60
        assert found["data"]["hash"]
        assert found["protocol"]["event_ties"] == "random"
        assert found["versions"]["torch"]
        assert set(found["report"]["rows"]) == {"ours", "popularity", "markov"}

    def test_ranking_beside_baselines(self, m6rec, ranking_run, tmp_path):
        words = ["--split", "valid", "--baselines", "rate", "--json", tmp_path / "report.json"]
        code, out, _ = m6rec("evaluate", ranking_run, *words)
        assert code == 0
        assert "auc" in out
        found = json.loads((tmp_path / "report.json").read_text())
        assert {"auc", "log_loss", "ece"} <= set(found["metrics"])
        assert found["protocol"]["split"]["rule"] == "leave-one-out"

    def test_a_picture(self, m6rec, retrieval_run, tmp_path):
        pytest.importorskip("matplotlib")
        code, _, _ = m6rec("evaluate", retrieval_run, "--plot", tmp_path / "report.png")
        assert code == 0
        assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"

    def test_a_dataset_that_has_moved(self, m6rec, fails, retrieval_run, shop, tmp_path):
        moved = shutil.copytree(shop, tmp_path / "moved")
        assert m6rec("evaluate", retrieval_run, "--data", moved)[0] == 0
        assert "nothing" in fails("evaluate", retrieval_run, "--data", tmp_path / "nothing")

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (["--split", "train"], "test"),
            (["--baselines", "populrity"], "mean popularity?"),
            (["--baselines", "rate"], "ranking run"),
        ],
    )
    def test_mistakes(self, fails, retrieval_run, words, part):
        assert part in fails("evaluate", retrieval_run, *words)

    def test_a_catalogue_baseline_of_a_ranking_run(self, fails, ranking_run):
        assert "popularity" in fails("evaluate", ranking_run, "--baselines", "popularity")

    def test_no_run(self, fails, tmp_path):
        assert "no run folder" in fails("evaluate", tmp_path / "nothing")


class TestRecommend:
    def test_titles(self, m6rec, retrieval_run, tmp_path):
        words = ["--history", "red shirt; blue lamp", "-k", 4, "--json", tmp_path / "found.json"]
        code, out, _ = m6rec("recommend", retrieval_run, *words)
        assert code == 0
        items = json.loads((tmp_path / "found.json").read_text())["items"]
        assert len(items) == 4
        assert all(set(item) == {"id", "title", "score"} for item in items)
        assert all(item["title"] in out and item["id"] in out for item in items)
        assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)

    def test_a_file_says_the_same(self, m6rec, retrieval_run, tmp_path):
        events = [{"item": "g00"}, {"item": "blue lamp"}]
        (tmp_path / "h.json").write_text(json.dumps(events))
        (tmp_path / "w.json").write_text(json.dumps({"history": events}))
        (tmp_path / "h.jsonl").write_text("".join(json.dumps(event) + "\n\n" for event in events))
        answers = []
        for history in ("red shirt;blue lamp", *(tmp_path / name for name in ("h.json", "w.json", "h.jsonl"))):
            assert m6rec("recommend", retrieval_run, "--history", history, "--json", tmp_path / "found.json")[0] == 0
            answers.append(json.loads((tmp_path / "found.json").read_text()))
        assert answers[1:] == answers[:1] * 3

    def test_nobody_in_particular(self, m6rec, retrieval_run):
        assert m6rec("recommend", retrieval_run)[0] == 0

    def test_a_ranker_on_top(self, m6rec, retrieval_run, ranking_run, tmp_path):
        words = ["--history", "red shirt", "--ranker", ranking_run, "-k", 3, "--json", tmp_path / "found.json"]
        assert m6rec("recommend", retrieval_run, *words)[0] == 0
        items = json.loads((tmp_path / "found.json").read_text())["items"]
        assert len(items) == 3
        assert all(0 < item["score"] < 1 for item in items)

    def test_titles_are_words_not_markup(self, m6rec, retrieval_run, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        run = Path(shutil.copytree(retrieval_run, tmp_path / "run"))
        path = run / "task" / "catalogue" / "items.parquet"
        table = pq.read_table(path)
        records = [json.dumps({"title": f"[red]{n} [/b] :smile:"}) for n in range(len(table))]
        place = table.column_names.index("record")
        pq.write_table(table.set_column(place, "record", pa.array(records)), path)
        code, out, _ = m6rec("recommend", run, "-k", 2)
        assert code == 0
        assert "[red]" in out
        assert "[/b] :smile:" in out

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (["-k", "0"], "k: got 0"),
            (["--history", "nothing.json"], "nothing.json"),
            (["--history", "broken.json"], "broken.json"),
            (["--history", "number.json"], "list of events"),
            (["--history", "wrong.jsonl"], "event 1"),
            (["--ranker", "nothing"], "no run folder"),
        ],
    )
    def test_mistakes(self, fails, retrieval_run, tmp_path, monkeypatch, words, part):
        for name, text in (("broken.json", "[{"), ("number.json", "7"), ("wrong.jsonl", '{"verb": "buy"}\n')):
            (tmp_path / name).write_text(text)
        monkeypatch.chdir(tmp_path)
        assert part in fails("recommend", retrieval_run, *words)

    def test_the_wrong_run(self, fails, ranking_run):
        assert "retrieval run" in fails("recommend", ranking_run, "--history", "red shirt")


def test_ranking_in_the_scene_that_the_context_says(m6rec, fails, shop, tiny_folder, tmp_path):
    words = ["scenes.by=time.season", "tuner={name: iak, bottleneck: 4}", "training.select_on=null"]
    assert m6rec("train", "ranking", f"data={shop}", f"out={tmp_path}", *small("ranking", tiny_folder), *words)[0] == 0
    answers = []
    for season in (1_600_000_000, 1_610_000_000, 1_600_000_001):  # the shop knows autumn alone
        context = ["--context", f"place=Oslo; time={season}", "--json", tmp_path / "found.json"]
        assert m6rec("rank", tmp_path, "--candidates", "blue lamp; green chair", *context)[0] == 0
        answers.append((tmp_path / "found.json").read_text())
    assert answers[0] == answers[2] != answers[1]
    for context, part in (("time=soon", "time: got 'soon', expected Unix seconds"), ("soon", "expected key=value")):
        assert part in fails("rank", tmp_path, "--candidates", "blue lamp", "--context", context)


def test_rank(m6rec, fails, ranking_run, retrieval_run, tmp_path):
    words = ["--candidates", "g03; winter phone; summer film;", "--history", "red shirt"]
    assert m6rec("rank", ranking_run, *words, "--json", tmp_path / "found.json")[0] == 0
    items = json.loads((tmp_path / "found.json").read_text())["items"]
    assert {item["title"] for item in items} == {"red lamp", "winter phone", "summer film"}
    assert "ranking run" in fails("rank", retrieval_run, *words)


class TestShowPrompt:
    @pytest.mark.parametrize("task", ["retrieval", "ranking"])
    def test_segments_with_roles_and_counts(self, m6rec, shop, tiny_folder, task):
        words = ["--task", task, "--user", "u007", "--candidates", "g09", "--backbone", tiny_folder]
        code, out, _ = m6rec("show-prompt", shop, *words)
        assert code == 0
        for part in ("[BOS']", "[EOS']", "event.", "item", "trunk", "tokens"):
            assert part in out
        assert ("blue" in out) >= (task == "ranking")

    def test_the_first_user_by_default(self, m6rec, shop, tiny_folder):
        assert m6rec("show-prompt", shop, "--backbone", tiny_folder)[0] == 0

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (["--user", "nobody"], "nobody"),
            (["--task", "ranking", "--candidates", "nothing"], "nothing"),
            (["--task", "retreival"], "retrieval"),
            (["--domain", "nowhere"], "nowhere"),
        ],
    )
    def test_mistakes(self, fails, shop, tiny_folder, words, part):
        assert part in fails("show-prompt", shop, "--backbone", tiny_folder, *words)


class TestList:
    @pytest.mark.parametrize("shelf", list(cli.SHELVES))
    def test_every_entry_has_its_line(self, m6rec, shelf):
        code, out, _ = m6rec("list", shelf)
        assert code == 0
        for name in cli.open_shelf(shelf):
            assert name in out

    def test_all(self, m6rec, fails):
        code, out, _ = m6rec("list")
        assert code == 0
        assert all(shelf in out for shelf in cli.SHELVES)
        assert "mean tasks" in fails("list", "taks")


def test_a_command_line_that_typer_refuses(m6rec):
    for words in (["nothing"], ["recommend"], ["train", "retrieval", "--nothing"], ["recommend", "run", "-k", "many"]):
        code, _, err = m6rec(*words)
        assert code == 2
        assert "Traceback" not in err


def test_a_mistake_is_exit_status_2_in_a_shell_too(tmp_path):
    command = [sys.executable, "-m", "m6rec", "recommend", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run folder at")
    assert "Traceback" not in done.stderr
