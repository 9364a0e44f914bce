import gzip
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from m6rec.data.fetch import CACHE_VARIABLE, Remote
from m6rec.data.sources.movielens import LatestSmall, MovieLens1M, MovieLens100K, MovieLensConfig
from m6rec.errors import DataError, RowError
from tests.contracts.source_contract import SourceContract

RATINGS = "userId,movieId,rating,timestamp\n1,10,4.0,964982703\n1,20,3.5,964981247\n1,30,5.0,964982224\n2,10,0.5,1\n"
MOVIES = (
    "movieId,title,genres\n10,Heat (1995),Action|Crime\n"
    '20,"Misérables, Les (1998) ",(no genres listed)\n30,Babylon 5,Sci-Fi\n'
)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    with gzip.open(tmp_path / "ratings.csv.gz", "wt", encoding="utf-8") as out:
        out.write(RATINGS)
    (tmp_path / "movies.csv").write_text(MOVIES, encoding="utf-8")
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,10,told later,2000000000\n")
    return tmp_path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "u.data").write_text("1\t1\t5\t874965758\n1\t2\t3\t876893171\n2\t1\t1\t878542960\n1\t3\t1\t878542961\n")
    flags = ["0|" * 18 + "1", "1|" + "0|" * 17 + "0", "0|1|1|" + "0|" * 15 + "0"]
    names = ["Good, The (1966)", "unknown", "Cité des enfants perdus, La (1995)"]
    lines = [
        f"{n}|{name}|01-Jan-1995||http://x|{flag}" for n, (name, flag) in enumerate(zip(names, flags, strict=True), 1)
    ]
    (tmp_path / "u.item").write_bytes("\n".join(lines).encode("latin-1"))
    (tmp_path / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")
    return tmp_path


@pytest.fixture
def million(tmp_path: Path) -> Path:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n1::20::3::978302109\n1::30::4::978301968\n")
    (tmp_path / "movies.dat").write_bytes(
        "10::Alien: Resurrection (1997)::Action|Sci-Fi\n20::Café (1990)::Drama\n30::M (1931)::Crime\n".encode("latin-1")
    )
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    return tmp_path


class TestLatestSmall(SourceContract):
    @pytest.fixture
    def source(self, small: Path) -> LatestSmall:
        return LatestSmall(MovieLensConfig(str(small)))

    def test_reads_the_layout(self, source: LatestSmall) -> None:
        events = pa.concat_tables(source.events()).to_pylist()
        assert events[1] == {"user": "1", "item": "20", "time": 964981247, "verb": "rate", "value": 3.5}
        assert pa.concat_tables(source.items()).to_pylist() == [
            {"item": "10", "title": "Heat", "category": "Action|Crime", "year": "1995"},
            {"item": "20", "title": "Les Misérables", "category": None, "year": "1998"},
            {"item": "30", "title": "Babylon 5", "category": "Sci-Fi", "year": None},
        ]

    def test_tags_reach_no_table(self, source: LatestSmall) -> None:
        assert all("told later" not in str(table.to_pylist()) for table in source.items())

    def test_a_bad_rating_names_file_row_and_field(self, small: Path) -> None:
        (small / "ratings.csv.gz").unlink()
        (small / "ratings.csv").write_text(RATINGS.replace("5.0", "five"))
        with pytest.raises(RowError, match=r"ratings\.csv, row 3, field 'rating': got 'five', expected a number"):
            list(LatestSmall(MovieLensConfig(str(small))).events())

    def test_a_missing_column_names_itself(self, small: Path) -> None:
        (small / "movies.csv").write_text(MOVIES.replace("genres", "kinds"))
        with pytest.raises(DataError, match="has no column 'genres'; it has movieId, title, kinds"):
            list(LatestSmall(MovieLensConfig(str(small))).items())

    def test_a_wrong_folder_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has no ratings\.csv"):
            list(LatestSmall(MovieLensConfig(str(tmp_path))).events())
        with pytest.raises(DataError, match="not there, expected the dataset's folder"):
            list(LatestSmall(MovieLensConfig(str(tmp_path / "none"))).events())


class Test100K(SourceContract):
    @pytest.fixture
    def source(self, old: Path) -> MovieLens100K:
        return MovieLens100K(MovieLensConfig(str(old)))

    def test_reads_the_layout(self, source: MovieLens100K) -> None:
        assert pa.concat_tables(source.events()).to_pylist()[1]["value"] == 3
        assert pa.concat_tables(source.items()).to_pylist() == [
            {"item": "1", "title": "The Good", "category": "Western", "year": "1966"},
            {"item": "2", "title": "unknown", "category": None, "year": None},
            {"item": "3", "title": "La Cité des enfants perdus", "category": "Action|Adventure", "year": "1995"},
        ]
        assert pa.concat_tables(source.users()).to_pylist() == [
            {"user": "1", "age": "24", "gender": "male", "occupation": "technician"},
            {"user": "2", "age": "53", "gender": "female", "occupation": None},
        ]

    def test_a_short_row_is_named(self, old: Path) -> None:
        (old / "u.data").write_text("1\t1\t5\t874965758\n1\t2\n")
        with pytest.raises(RowError, match=r"u\.data, row 2, field 'rating': got 2 fields between '\\t', expected 4"):
            list(MovieLens100K(MovieLensConfig(str(old))).events())


class Test1M(SourceContract):
    @pytest.fixture
    def source(self, million: Path) -> MovieLens1M:
        return MovieLens1M(MovieLensConfig(str(million)))

    def test_reads_the_layout(self, source: MovieLens1M) -> None:
        assert pa.concat_tables(source.items()).to_pylist()[:2] == [
            {"item": "10", "title": "Alien: Resurrection", "category": "Action|Sci-Fi", "year": "1997"},
            {"item": "20", "title": "Café", "category": "Drama", "year": "1990"},
        ]
        assert pa.concat_tables(source.users()).to_pylist() == [
            {"user": "1", "age": "under 18", "gender": "female", "occupation": "school student"}
        ]

    def test_an_unknown_code_is_named(self, million: Path) -> None:
        (million / "users.dat").write_text("1::F::1::10::48067\n2::F::19::10::48067\n")
        with pytest.raises(RowError, match=r"users\.dat, row 2, field 'age': got '19', expected one of 1, 18"):
            list(MovieLens1M(MovieLensConfig(str(million))).users())


@pytest.fixture
def address(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    served = tmp_path_factory.mktemp("served")
    with zipfile.ZipFile(served / "ml.zip", "w") as archive:
        for path in small.iterdir():
            archive.write(path, f"ml-latest-small/{path.name}")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hash_ = hashlib.sha256((served / "ml.zip").read_bytes()).hexdigest()
        yield Remote(f"http://127.0.0.1:{server.server_address[1]}/ml.zip", hash_)
        server.shutdown()
        thread.join()


def test_downloads_when_asked(address: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(LatestSmall, "remote", address)
    assert sum(len(table) for table in LatestSmall().events()) == 4


def test_real_latest_small(shared_data: Path) -> None:
    source = LatestSmall(MovieLensConfig(str(shared_data / "ml-latest-small")))
    events = pa.concat_tables(source.events())
    assert len(events) == 100_836
    assert len(set(events["user"].to_pylist())) == 610
    assert len(set(events["item"].to_pylist())) == 9_724
    items = pa.concat_tables(source.items())
    assert len(items) == 9_742
    assert items["title"].null_count == 0
