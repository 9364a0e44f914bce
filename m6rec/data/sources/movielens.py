"""MovieLens as GroupLens publishes it: latest-small (csv), 100k (tabs and bars), 1m (double colons).

The year stands in the title and becomes an attribute of its own; genres are the category. Tags are left out: they were
given at all times, so as text of a film they would tell a model of the future. Knows no other dataset.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from m6rec.data.chunk import Chunk
from m6rec.data.fetch import Remote, fetch_unpacked
from m6rec.data.readers import read_csv
from m6rec.data.sources.film_titles import split_year
from m6rec.data.sources.folders import FolderSource, need, with_columns
from m6rec.data.sources.lines import read_lines

DOWNLOAD = "download"
"""The path that means: get it from GroupLens."""
LICENCE = (
    "GroupLens (University of Minnesota): free for research, no commercial use without permission, acknowledge "
    "Harper and Konstan 2015; https://grouplens.org/datasets/movielens/"
)
LATEST_SMALL = Remote(
    "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
    "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
)
ML_100K = Remote(
    "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
)
ML_1M = Remote(
    "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
)
_NO_GENRE = {"(no genres listed)", "unknown", ""}
# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
_AGES_1M = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56 and over"}
_JOBS_1M = (
    "other", "academic or educator", "artist", "clerical or admin", "college or graduate student", "customer service",
    "doctor or health care", "executive or managerial", "farmer", "homemaker", "school student", "lawyer",
    "programmer", "retired", "sales or marketing", "scientist", "self-employed", "technician or engineer",
    "tradesman or craftsman", "unemployed", "writer",
)
# fmt: on
_GENDERS = {"M": "male", "F": "female"}


@dataclass(frozen=True)
class MovieLensConfig:
    """Where MovieLens is."""

    path: str = DOWNLOAD
    """The unpacked folder, or ``download`` to get it from GroupLens (once; kept in the cache). Changes results."""


class MovieLens(FolderSource):
    """What the three layouts share."""

    Config = MovieLensConfig
    name: str
    licence = LICENCE
    domain = "movies"
    remote: ClassVar[Remote]

    def __init__(self, config: MovieLensConfig = MovieLensConfig()) -> None:
        self.config = config

    @cached_property
    def folder(self) -> Path:
        """The unpacked folder; downloaded at first use where that was asked for."""
        return fetch_unpacked(self.remote) if self.config.path == DOWNLOAD else Path(self.config.path).expanduser()


class LatestSmall(MovieLens):
    """MovieLens latest-small: 610 users, 9,724 rated films, 100,836 ratings from 1996 to 2018."""

    name = "movielens-latest-small"
    remote = LATEST_SMALL

    def events(self) -> Iterator[pa.Table]:
        """Yield ratings in file order."""
        for chunk in with_columns(
            read_csv(need(self.folder, "ratings.csv")), "userId", "movieId", "rating", "timestamp"
        ):
            yield _ratings(chunk, "userId", "movieId", "rating", "timestamp")

    def items(self) -> Iterator[pa.Table]:
        """Yield films, those without a rating included."""
        for chunk in with_columns(read_csv(need(self.folder, "movies.csv")), "movieId", "title", "genres"):
            yield _films(chunk, "movieId", "title", _split_bars(chunk, "genres"))


class MovieLens100K(MovieLens):
    """MovieLens 100k: 943 users, 1,682 films, 100,000 ratings from 1997 and 1998."""

    name = "movielens-100k"
    remote = ML_100K

    def events(self) -> Iterator[pa.Table]:
        """Yield ratings in file order (which is no order in time)."""
        for chunk in read_lines(need(self.folder, "u.data"), "\t", ("user", "item", "rating", "time")):
            yield _ratings(chunk, "user", "item", "rating", "time")

    def items(self) -> Iterator[pa.Table]:
        """Yield films; the release date gives way to the year in the title."""
        names = ("item", "title", "released", "video", "address", *_GENRES_100K)
        for chunk in read_lines(need(self.folder, "u.item"), "|", names, encoding="latin-1"):
            flags = [chunk.integer(genre).to_pylist() for genre in _GENRES_100K]
            genres = [
                [name for name, flag in zip(_GENRES_100K, row, strict=True) if flag] for row in zip(*flags, strict=True)
            ]
            yield _films(chunk, "item", "title", genres)

    def users(self) -> Iterator[pa.Table]:
        """Yield age, gender and occupation."""
        names = ("user", "age", "gender", "occupation", "zip")
        for chunk in read_lines(need(self.folder, "u.user"), "|", names):
            yield _people(chunk, str, lambda job: None if job in ("none", "other") else job)


class MovieLens1M(MovieLens):
    """MovieLens 1m: 6,040 users, 3,706 rated films, 1,000,209 ratings from 2000 to 2003."""

    name = "movielens-1m"
    remote = ML_1M

    def events(self) -> Iterator[pa.Table]:
        """Yield ratings in file order."""
        for chunk in read_lines(need(self.folder, "ratings.dat"), "::", ("user", "item", "rating", "time")):
            yield _ratings(chunk, "user", "item", "rating", "time")

    def items(self) -> Iterator[pa.Table]:
        """Yield films, those without a rating included."""
        names = ("item", "title", "genres")
        for chunk in read_lines(need(self.folder, "movies.dat"), "::", names, encoding="latin-1"):
            yield _films(chunk, "item", "title", _split_bars(chunk, "genres"))

    def users(self) -> Iterator[pa.Table]:
        """Yield age band, gender and occupation."""
        for chunk in read_lines(need(self.folder, "users.dat"), "::", ("user", "gender", "age", "occupation", "zip")):
            yield _people(chunk, _from(chunk, "age", _AGES_1M), _from(chunk, "occupation", dict(enumerate(_JOBS_1M))))


def _ratings(chunk: Chunk, user: str, item: str, rating: str, time: str) -> pa.Table:
    return pa.table(
        {
            "user": chunk.require(user, chunk.text(user), "is empty, expected a user"),
            "item": chunk.require(item, chunk.text(item), "is empty, expected a film"),
            "time": chunk.time(time),
            "verb": pa.array(["rate"] * len(chunk)),
            "value": chunk.number(rating).cast(pa.float32()),
        }
    )


def _split_bars(chunk: Chunk, field: str) -> list[list[str]]:
    return [(text or "").split("|") for text in chunk.text(field).to_pylist()]


def _films(chunk: Chunk, item: str, title: str, genres: Sequence[Sequence[str]]) -> pa.Table:
    parted = [split_year(text or "") for text in chunk.text(title).to_pylist()]
    kept = ([genre for genre in row if genre not in _NO_GENRE] for row in genres)
    return pa.table(
        {
            "item": chunk.require(item, chunk.text(item), "is empty, expected a film"),
            "title": pa.array([name or None for name, _ in parted], pa.string()),
            "category": pa.array(["|".join(row) or None for row in kept], pa.string()),
            "year": pa.array([year for _, year in parted], pa.string()),
        }
    )


def _people(chunk: Chunk, age: Callable[[str], str | None], job: Callable[[str], str | None]) -> pa.Table:
    def each(field: str, say: Callable[[str], str | None]) -> pa.Array:
        return pa.array([None if text is None else say(text) for text in chunk.text(field).to_pylist()], pa.string())

    return pa.table(
        {
            "user": chunk.require("user", chunk.text("user"), "is empty, expected a user"),
            "age": each("age", age),
            "gender": each("gender", _GENDERS.get),
            "occupation": each("occupation", job),
        }
    )


def _from(chunk: Chunk, field: str, names: dict[int, str]) -> Callable[[str], str | None]:
    def say(code: str) -> str | None:
        if not code.isdigit() or int(code) not in names:
            row = chunk.text(field).to_pylist().index(code)
            chunk.fail(field, row, f"got {code!r}, expected one of {', '.join(map(str, names))}")
        return names[int(code)]

    return say
