"""Offline scoring: what a file is answered is what the recommender answers, however often the job was cut."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec import cli
from m6rec.api import load
from m6rec.errors import ConfigError, DataError, RowError, RunError, UnknownNameError
from m6rec.serving.batch import BatchConfig, BatchJob, parts, run_batch
from m6rec.serving.batch.clerk import Clerk
from m6rec.serving.batch.parts import cut, open_parquet

HISTORIES = [
    [{"item": "g00", "verb": "buy", "time": 1_600_000_000}, {"item": "g01", "verb": None, "time": None}],
    [],
    None,
    [{"item": "a lamp that nobody knows", "verb": "view", "time": 1_600_000_500}],
    *([{"item": f"g{place:02d}", "verb": "view", "time": None}] for place in range(8)),
]


def write(path, columns, rows_a_group=5):
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)
    return path


def nobody(done, total):
    pass


def answered(runs, source, out, **settings):
    """Run a job and return the output's rows."""
    run_batch(BatchJob(tuple(map(str, runs)), source, out, BatchConfig(**settings)), nobody)
    return pq.read_table(out).to_pylist()


def pairs(found):
    return [(item["id"], item["score"]) for item in found]


@pytest.fixture
def requests(tmp_path):
    """Return a file of twelve histories in three row groups, with a column that nobody reads."""
    return write(tmp_path / "in.parquet", {"user": list(range(12)), "history": HISTORIES})


@pytest.fixture(scope="module")
def recommender(retrieval_run):
    return load(retrieval_run)


def test_rows_get_what_the_recommender_says(requests, retrieval_run, recommender, tmp_path):
    rows = answered([retrieval_run], requests, tmp_path / "out.parquet", k=4, part_rows=3)
    assert [row["user"] for row in rows] == list(range(12))
    for row, history in zip(rows, HISTORIES, strict=True):
        events = [{name: value for name, value in event.items() if value is not None} for event in history or []]
        assert pairs(row["items"]) == [(item.id, item.score) for item in recommender.recommend(events, k=4)]
    assert rows[1]["items"] == rows[2]["items"]  # no history is the history of somebody new


def test_histories_may_be_texts_or_lists_and_columns_have_names_of_their_own(retrieval_run, tmp_path):
    texts = write(tmp_path / "texts.parquet", {"basket": ["red shirt; blue lamp", ""]})
    lists = write(tmp_path / "lists.parquet", {"history": [["g00", "g09"], []]})
    one = answered([retrieval_run], texts, tmp_path / "one.parquet", columns={"history": "basket"})
    assert one == answered([retrieval_run], lists, tmp_path / "two.parquet")
    assert list(one[0]) == ["items"]  # what was read does not go along
    same = write(tmp_path / "same.parquet", {"items": ["red shirt; blue lamp", ""]})
    assert answered([retrieval_run], same, tmp_path / "three.parquet", columns={"history": "items"}) == one


def test_items_are_embedded_at_once_as_the_catalogue_reads_them(retrieval_run, recommender, tmp_path):
    items = ["a red shirt", "a blue lamp", "shoes", "a chair", "a long walking stick", "a shirt"]
    titles = write(tmp_path / "in.parquet", {"item": items})
    vectors = [row["vector"] for row in answered([retrieval_run], titles, tmp_path / "out.parquet", work="embed")]
    wanted = recommender.catalog.read([{"id": str(place), "title": title} for place, title in enumerate(items)])
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    mappings = write(tmp_path / "mappings.parquet", {"item": [{"title": title} for title in items]})
    again = answered([retrieval_run], mappings, tmp_path / "again.parquet", work="embed", part_rows=4)
    np.testing.assert_allclose([row["vector"] for row in again], vectors, atol=1e-5)


def test_an_item_without_words_is_told_by_its_row(retrieval_run, tmp_path):
    source = write(tmp_path / "in.parquet", {"item": [{"title": "a lamp"}, {"title": ""}, None, {"title": "shoes"}]})
    with pytest.raises(RowError, match="without any text"):
        answered([retrieval_run], source, tmp_path / "out.parquet", work="embed")
    rows = answered([retrieval_run], source, tmp_path / "kept.parquet", work="embed", keep_errors=True)
    assert [row["vector"] is None for row in rows] == [False, True, True, False]


def test_a_ranking_run_orders_each_rows_candidates(ranking_run, tmp_path):
    columns = {"history": ["red shirt", ""], "candidates": [["g03", "g01"], ["a new lamp", "g05", "g06"]]}
    source = write(tmp_path / "in.parquet", columns)
    rows = answered([ranking_run], source, tmp_path / "out.parquet")
    recommender = load(ranking_run)
    for row, history, candidates in zip(rows, *columns.values(), strict=True):
        assert pairs(row["items"]) == [(item.id, item.score) for item in recommender.rank(history, candidates)]
    joined = {"history": ["red shirt"], "candidates": ["g03; g01;"]}
    assert answered([ranking_run], write(tmp_path / "j.parquet", joined), tmp_path / "j2.parquet") == rows[:1]


@pytest.fixture(scope="module")
def explaining_run(tiny_folder, tmp_path_factory):
    from m6rec.assemble import train_run
    from m6rec.recipe import read_recipe
    from tests.written_shop import prepare_written

    folder = tmp_path_factory.mktemp("writers")
    words = ["task.max_events=3", "task.decoding.max_new_tokens=6", "training.max_steps=2"]
    data = prepare_written(folder)
    out = folder / "why"
    train_run(read_recipe("explanation", [f"data={data}", f"out={out}", f"backbone.name={tiny_folder}", *words]))
    return out


def test_a_run_that_explains_explains(explaining_run, tmp_path):
    source = write(tmp_path / "in.parquet", {"history": ["red shirt; blue lamp", ""], "item": ["g03", "g04"]})
    rows = answered([explaining_run], source, tmp_path / "out.parquet", decoding={"max_new_tokens": 4})
    recommender = load(explaining_run)
    for row, history, item in zip(rows, ["red shirt; blue lamp", ""], ["g03", "g04"], strict=True):
        found = recommender.explain(history, item, max_new_tokens=4)
        assert (row["text"], row["complete"]) == (found.text, found.complete)
        assert tuple(row["attributes"]) == found.evidence.attributes
    scored = answered(
        [explaining_run], write(tmp_path / "t.parquet", {"text": ["red"]}), tmp_path / "s.parquet", work="score"
    )
    assert scored == [{"score": recommender.score("red")}]


class CutError(Exception):
    """Stands for the end of the process."""


def cut_after(parts):
    def show(done, total):
        if done >= parts:
            raise CutError

    return show


def test_a_job_that_was_cut_goes_on_and_ends_in_the_same_file(requests, retrieval_run, tmp_path, monkeypatch):
    config = BatchConfig(k=3, part_rows=2)
    whole = BatchJob((str(retrieval_run),), requests, tmp_path / "whole.parquet", config)
    run_batch(whole, nobody)
    job = BatchJob((str(retrieval_run),), requests, tmp_path / "deep" / "out.parquet", config)
    for rows in (2, 7):
        with pytest.raises(CutError):
            run_batch(job, cut_after(rows))
        assert not job.out.exists()
    (job.out.parent / "out.parquet.parts" / ".00000005.parquet.77").write_bytes(b"half a part")
    asked = []
    answer = Clerk.answer
    monkeypatch.setattr(Clerk, "answer", lambda self, table, part: asked.append(part.row) or answer(self, table, part))
    done = run_batch(job, nobody)
    assert (done.rows, done.kept) == (12, 7)  # row groups of five, in parts of two: 2 + 2 + 1 + 2
    assert asked == [8, 10, 11]
    assert job.out.read_bytes() == whole.out.read_bytes()
    assert [path.name for path in job.out.parent.iterdir()] == ["out.parquet"]


def test_parts_of_another_job_are_not_gone_on_with(requests, retrieval_run, tmp_path):
    def job(source, **settings):
        return BatchJob((str(retrieval_run),), source, tmp_path / "out.parquet", BatchConfig(part_rows=2, **settings))

    with pytest.raises(CutError):
        run_batch(job(requests), cut_after(2))
    with pytest.raises(ConfigError, match="other k; finish that one"):
        run_batch(job(requests, k=3), nobody)
    other = write(tmp_path / "other.parquet", {"history": HISTORIES[:5]})
    with pytest.raises(ConfigError, match="other source"):
        run_batch(job(other), nobody)


def test_every_row_is_in_one_part(tmp_path):
    path = write(tmp_path / "in.parquet", {"history": [""] * 23}, rows_a_group=9)
    with open_parquet(path) as file:
        parts = cut(file, 4)
    assert [number for part in parts for number in range(part.row, part.row + part.rows)] == list(range(1, 24))
    assert max(part.rows for part in parts) == 4


def test_rows_come_in_groups_of_bearable_size(requests, retrieval_run, tmp_path, monkeypatch):
    whole = answered([retrieval_run], requests, tmp_path / "whole.parquet", part_rows=2)
    monkeypatch.setattr(parts, "GROUP_BYTES", 1)
    assert answered([retrieval_run], requests, tmp_path / "out.parquet", part_rows=2) == whole
    found = pq.ParquetFile(tmp_path / "out.parquet").metadata
    assert [found.row_group(group).num_rows for group in range(found.num_row_groups)] == [2, 2, 1, 2, 2, 1, 2]


def test_no_rows_are_an_answer_too(retrieval_run, tmp_path):
    source = write(tmp_path / "in.parquet", {"history": pa.array([], pa.string())})
    assert answered([retrieval_run], source, tmp_path / "out.parquet") == []
    assert pq.read_schema(tmp_path / "out.parquet").names == ["items"]


class TestMistakes:
    def test_a_bad_row_is_named_and_those_before_are_kept(self, retrieval_run, tmp_path):
        histories = [[{"item": "g00", "time": 1.0}]] * 3 + [[{"item": "g00", "time": float("inf")}]]
        source = write(tmp_path / "in.parquet", {"bought": histories}, rows_a_group=2)
        config = BatchConfig(columns={"history": "bought"}, part_rows=1)
        job = BatchJob((str(retrieval_run),), source, tmp_path / "out.parquet", config)
        with pytest.raises(RowError, match=r"row 4, field 'bought': event 1 .*got time inf"):
            run_batch(job, nobody)
        assert len(list((tmp_path / "out.parquet.parts").glob("0*.parquet"))) == 3

    def test_errors_can_be_kept_instead(self, ranking_run, tmp_path):
        columns = {"history": ["", "", ""], "candidates": [["g01"], None, [" "]]}
        source = write(tmp_path / "in.parquet", columns)
        rows = answered([ranking_run], source, tmp_path / "out.parquet", keep_errors=True)
        assert [row["error"] is None for row in rows] == [True, False, False]
        assert [bool(row["items"]) for row in rows] == [True, False, False]
        assert rows[1]["error"] == "field 'candidates': got nothing, expected a value"
        assert "' '" in rows[2]["error"]

    def test_a_missing_column_is_named_with_those_there(self, ranking_run, tmp_path):
        source = write(tmp_path / "in.parquet", {"history": [""], "goods": [["g01"]]})
        job = BatchJob((str(ranking_run),), source, tmp_path / "out.parquet")
        with pytest.raises(DataError, match=r"lacks 'candidates', which rank needs; it has history, goods"):
            run_batch(job, nobody)
        assert not (tmp_path / "out.parquet.parts").exists()

    def test_a_column_in_the_answers_place(self, retrieval_run, tmp_path):
        source = write(tmp_path / "in.parquet", {"history": [""], "items": [1]})
        with pytest.raises(DataError, match="items, which is where answers go"):
            run_batch(BatchJob((str(retrieval_run),), source, tmp_path / "out.parquet"), nobody)

    def test_files_that_are_none(self, retrieval_run, tmp_path):
        half = write(tmp_path / "in.parquet", {"history": ["red shirt"] * 50})
        half.write_bytes(half.read_bytes()[:-9])
        for source in (half, tmp_path / "nowhere.parquet", tmp_path):
            with pytest.raises(DataError, match=r"expected a parquet file|no whole parquet file"):
                run_batch(BatchJob((str(retrieval_run),), source, tmp_path / "out.parquet"), nobody)

    def test_a_damaged_row_group_is_named(self, retrieval_run, tmp_path):
        source = write(tmp_path / "in.parquet", {"history": ["red shirt", "blue lamp"]})
        content = bytearray(source.read_bytes())
        content[4:40] = b"\xff" * 36
        source.write_bytes(content)
        with pytest.raises(DataError, match="row group 0: cannot be read"):
            run_batch(BatchJob((str(retrieval_run),), source, tmp_path / "out.parquet"), nobody)

    def test_what_cannot_be_done_is_said_before_anything_is(self, requests, retrieval_run, tmp_path):
        def job(out="out.parquet", runs=(str(retrieval_run),), **settings):
            return BatchJob(runs, requests, tmp_path / out, BatchConfig(**settings))

        with pytest.raises(UnknownNameError, match="did you mean rank"):
            run_batch(job(work="ranc"), nobody)
        with pytest.raises(ConfigError, match="expected two files"):
            run_batch(job("in.parquet"), nobody)
        with pytest.raises(ConfigError, match=r"columns: got histori, expected some of history"):
            run_batch(job(columns={"histori": "history"}), nobody)
        with pytest.raises(RunError, match="no run folder"):
            run_batch(job(runs=(str(tmp_path / "none"),)), nobody)
        with pytest.raises(ConfigError, match="k: got 0"):
            BatchConfig(k=0)

    def test_a_text_that_is_too_long_is_its_rows_fault(self, explaining_run, tmp_path):
        source = write(tmp_path / "in.parquet", {"text": ["red", "lamp " * 500]})
        rows = answered([explaining_run], source, tmp_path / "out.parquet", work="score", keep_errors=True)
        assert rows[0]["error"] is None
        assert "field 'text'" in rows[1]["error"]
        assert "shorten it" in rows[1]["error"]

    def test_a_wrong_setting_of_writing_is_no_rows_fault(self, explaining_run, tmp_path):
        source = write(tmp_path / "in.parquet", {"history": [""], "item": ["g03"]})
        config = BatchConfig(decoding={"max_new_token": 4}, keep_errors=True)
        with pytest.raises(ConfigError, match="did you mean max_new_tokens"):
            run_batch(BatchJob((str(explaining_run),), source, tmp_path / "out.parquet", config), nobody)


def test_the_command(requests, retrieval_run, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out.parquet"
    monkeypatch.setattr(sys, "argv", ["m6rec", "batch", str(retrieval_run), str(requests), str(out), "-k", "2"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert f"{out}: 12 rows" in capfd.readouterr().out
    assert {len(row["items"]) for row in pq.read_table(out).to_pylist()} == {2}


@pytest.mark.slow
def test_ray_data_writes_the_same_file(requests, retrieval_run, tmp_path, ray_cluster):
    files = []
    for executor in ("local", "ray"):
        out = tmp_path / f"{executor}.parquet"
        answered([retrieval_run], requests, out, k=3, part_rows=2, executor=executor)
        files.append(out.read_bytes())
    assert files[0] == files[1]
    titles = write(tmp_path / "titles.parquet", {"item": ["a red shirt", "a blue lamp", "shoes"]})
    embedded = [
        answered([retrieval_run], titles, tmp_path / f"{executor}.out.parquet", work="embed", executor=executor)
        for executor in ("local", "ray")
    ]
    assert embedded[0] == embedded[1]
    bad = write(tmp_path / "bad.parquet", {"history": [[{"item": "g00"}], [{"item": None}]]})
    with pytest.raises(DataError, match=r"row 2, field 'history'"):
        answered([retrieval_run], bad, tmp_path / "bad.out.parquet", executor="ray")
