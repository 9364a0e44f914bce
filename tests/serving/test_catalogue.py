"""Items that come, change and go in service: seen at once, kept for good, and nobody waits who only reads."""

import threading

import pytest

from m6rec.api import load
from m6rec.errors import DataError, ItemTakenError, ItemUnknownError, JournalError, RunError
from m6rec.serving.catalogue import CatalogueConfig, ServedCatalogue

NEW = {"id": "n1", "title": "yellow teapot", "category": "kitchen"}
HISTORY = "red shirt; blue lamp; yellow teapot"


def answers(recommender, history=HISTORY):
    return [(item.id, item.title, pytest.approx(item.score, abs=1e-5)) for item in recommender.retrieve(history, 60)]


def ids(recommender, history=HISTORY):
    return [item.id for item in recommender.retrieve(history, 60, exclude_history=False)]


@pytest.fixture
def opened(retrieval_run, tmp_path):
    """Return ``open(**config)``: a recommender and its catalogue over one folder, as a server's start gives them."""
    last = []

    def start(*runs, **config):
        for catalogue in last:
            catalogue.close()
        recommender = load(retrieval_run, *runs)
        last[:] = [ServedCatalogue(recommender, tmp_path / "items", CatalogueConfig(**config))]
        return recommender, last[0]

    yield start
    for catalogue in last:
        catalogue.close()


class TestSeen:
    def test_by_the_next_request(self, opened):
        recommender, catalogue = opened()
        before = recommender.catalog.revision
        catalogue.add([NEW])
        assert "n1" in ids(recommender)
        assert recommender.catalog.revision > before
        catalogue.change([{**NEW, "title": "green teapot"}])
        assert next(item for item in recommender.retrieve("red shirt", 60) if item.id == "n1").title == "green teapot"
        catalogue.remove(["n1", "g03"])
        assert not {"n1", "g03"} & set(ids(recommender))
        assert len(catalogue) == 35

    def test_as_without_a_server(self, opened, retrieval_run):
        recommender, catalogue = opened()
        catalogue.add([NEW, {"id": "n2", "title": "soft chair case"}])
        alone = load(retrieval_run)
        alone.catalog.add([NEW, {"id": "n2", "title": "soft chair case"}])
        assert answers(recommender) == answers(alone)

    def test_what_training_knows_of_an_item_stays_when_it_changes(self, opened):
        recommender, catalogue = opened()
        before = answers(recommender, "red shirt")
        catalogue.change([catalogue.get(key) for key in ("g00", "g01", "g02")])
        assert answers(recommender, "red shirt") == before

    def test_by_the_runs_beside(self, opened, ranking_run):
        recommender, catalogue = opened(ranking_run)
        catalogue.change([{**catalogue.get("g02"), "title": "green winter case"}])
        catalogue.add([NEW])
        by_id = recommender.rank("n1", ["g02", "n1"])
        assert {item.title for item in by_id} == {"green winter case", "yellow teapot"}
        by_words = recommender.rank([NEW], [catalogue.get("g02"), NEW])
        assert [item.score for item in by_id] == pytest.approx([item.score for item in by_words])
        catalogue.remove(["g02"])
        assert not recommender.ranker.task.catalogue.offers("g02")

    def test_a_run_that_does_not_retrieve_has_no_catalogue(self, ranking_run, tmp_path):
        with pytest.raises(RunError, match="retrieval run"):
            ServedCatalogue(load(ranking_run), tmp_path)


class TestKept:
    @pytest.mark.parametrize("journal_bytes", [1, 1 << 20], ids=["snapshots", "journal"])
    def test_a_restart_goes_on_as_if_there_had_been_none(self, opened, journal_bytes):
        recommender, catalogue = opened(journal_bytes=journal_bytes)
        catalogue.add([NEW, {"id": "n2", "title": "soft chair case"}, {"id": "n3", "title": "blue film"}])
        catalogue.change([{"id": "g05", "title": "warm phone case"}])
        catalogue.remove(["n3", "g07", "g08"])
        # An id that comes back is another item: nothing that the log says of the former one is its.
        catalogue.add([{"id": "g07", "title": "summer film"}])
        before = answers(recommender)
        recommender, _ = opened()
        assert answers(recommender) == before
        assert not {"n3", "g08"} & set(ids(recommender))

    def test_snapshots_spare_a_start_the_reading(self, opened, monkeypatch):
        recommender, catalogue = opened(journal_bytes=1)
        catalogue.add([NEW])
        before = answers(recommender, "red shirt")
        texts = []
        encode = type(recommender.catalog.retrieval.encoder).encode
        monkeypatch.setattr(
            type(recommender.catalog.retrieval.encoder),
            "encode",
            lambda self, backbone, some, *rest: texts.append(some) or encode(self, backbone, some, *rest),
        )
        recommender, _ = opened()
        assert not texts
        assert answers(recommender, "red shirt") == before

    def test_another_version_takes_over_with_all_changes(self, opened, retrieval_run):
        recommender, catalogue = opened()
        catalogue.add([NEW])
        other = load(retrieval_run)
        catalogue.attach(other)
        assert answers(other) == answers(recommender)
        catalogue.release(recommender)
        catalogue.remove(["n1"])
        assert "n1" not in ids(other)
        assert "n1" in ids(recommender)


class TestRefused:
    @pytest.mark.parametrize(
        ("verb", "given", "error"),
        [
            ("add", [{"id": "g01", "title": "red lamp"}], ItemTakenError),
            ("add", [NEW, NEW], DataError),
            ("add", [{"title": "no id"}], DataError),
            ("add", [NEW, {"id": "n2"}], DataError),
            ("add", [{**NEW, "price": float("nan")}], DataError),
            ("add", [{**NEW, "picture": b"bytes"}], DataError),
            ("change", [NEW], ItemUnknownError),
            ("remove", ["g01", "n1"], ItemUnknownError),
        ],
    )
    def test_what_cannot_be_changes_nothing(self, opened, verb, given, error):
        recommender, catalogue = opened()
        before = answers(recommender)
        with pytest.raises(error):
            getattr(catalogue, verb)(given)
        assert answers(recommender) == before
        recommender, _ = opened()
        assert answers(recommender) == before

    def test_a_full_disk_leaves_everything_as_it_was(self, opened, monkeypatch):
        def full(file, words):
            raise OSError(28, "No space left on device")

        recommender, catalogue = opened()
        catalogue.add([NEW])
        before = answers(recommender)
        with monkeypatch.context() as disk:
            disk.setattr("m6rec.serving.journal._write", full)
            for change in (
                lambda: catalogue.add([{"id": "n2", "title": "blue film"}]),
                lambda: catalogue.remove(["n1"]),
            ):
                with pytest.raises(JournalError, match="No space left"):
                    change()
        assert answers(recommender) == before
        catalogue.remove(["n1"])
        recommender, _ = opened()
        assert "n1" not in ids(recommender)

    def test_a_change_that_fails_half_way_is_not_acknowledged(self, opened, monkeypatch):
        _, catalogue = opened()
        monkeypatch.setattr("m6rec.serving.catalogue.apply", lambda changes, recommender: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            catalogue.add([NEW])


def test_many_writers_and_readers_at_once(opened):
    recommender, catalogue = opened(journal_bytes=200)
    failures, done = [], threading.Event()

    def write(name):
        try:
            for number in range(3):
                catalogue.add([{"id": f"{name}{number}", "title": f"{name} lamp {number}"}])
                assert f"{name}{number}" in ids(recommender)
            catalogue.remove([f"{name}0"])
        except Exception as error:  # noqa: BLE001 (another thread's assertion)
            failures.append(error)

    def read():
        while not done.is_set():
            try:
                assert len(ids(recommender)) >= 36
            except Exception as error:  # noqa: BLE001
                failures.append(error)
                return

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert len(catalogue) == 36 + 4 * 2
    assert len(recommender.catalog.offer.index) == 44
    again, _ = opened()
    assert sorted(ids(again)) == sorted(ids(recommender))
