import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from m6rec.data import fetch as fetching
from m6rec.data.fetch import Remote, fetch, fetch_unpacked
from m6rec.errors import DataError

CONTENT = bytes(range(256)) * 2000
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves files with byte ranges, and breaks off the first ``broken`` transfers after ``after`` bytes."""

    daemon_threads = True
    broken = 0
    after = 100_000
    ranges = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), functools.partial(Handler))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path, wanted = self.server.folder / self.path.strip("/"), self.headers.get("Range")
        self.server.asked.append(wanted)
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.broken:
            self.server.broken -= 1
            body = body[: self.server.after]
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_downloads_once(server: Server, cache: Path) -> None:
    remote = Remote(f"{server.url}/file.bin", HASH)
    path = fetch(remote, cache)
    assert path.read_bytes() == CONTENT
    assert fetch(remote, cache) == path
    assert len(server.asked) == 1
    assert [entry.name for entry in cache.iterdir()] == [path.name]


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, cache: Path) -> None:
    server.broken = 2
    path = fetch(Remote(f"{server.url}/file.bin", HASH), cache)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_what_arrived_is_kept_for_the_next_call(server: Server, cache: Path) -> None:
    server.broken = fetching.ATTEMPTS
    remote = Remote(f"{server.url}/file.bin", HASH)
    with pytest.raises(DataError, match=r"broke off .got 100000 of 312000 bytes.; 300000 bytes are kept"):
        fetch(remote, cache)
    assert fetch(remote, cache).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=300000-"


def test_a_server_without_ranges_starts_over(server: Server, cache: Path) -> None:
    server.broken, server.ranges = 1, False
    assert fetch(Remote(f"{server.url}/file.bin", HASH), cache).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_starts_over(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{HASH[:12]}-file.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(Remote(f"{server.url}/file.bin", HASH), cache).read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_thrown_away(server: Server, cache: Path) -> None:
    with pytest.raises(DataError, match=f"got a file with sha256 {HASH}, expected {'0' * 64}"):
        fetch(Remote(f"{server.url}/file.bin", "0" * 64), cache)
    assert list(cache.iterdir()) == []


def test_a_missing_file_says_so(server: Server, cache: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.bin: the server says 404"):
        fetch(Remote(f"{server.url}/nothing.bin", HASH), cache)


def test_no_server_says_so(cache: Path) -> None:
    with pytest.raises(DataError, match="give its folder as path"):
        fetch(Remote("http://127.0.0.1:9/file.bin", HASH), cache)


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tmp_path))
    assert fetching.cache_folder() == tmp_path


def _zipped(server: Server, **members: str) -> Remote:
    path = server.folder / "files.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/"), text)
    return Remote(f"{server.url}/files.zip", hashlib.sha256(path.read_bytes()).hexdigest())


def test_unpacks_to_the_one_folder_inside(server: Server, cache: Path) -> None:
    remote = _zipped(server, **{"ml__ratings.csv": "1", "ml__movies.csv": "2"})
    folder = fetch_unpacked(remote, cache)
    assert (folder / "ratings.csv").read_text() == "1"
    assert fetch_unpacked(remote, cache) == folder
    assert len(server.asked) == 1


def test_an_archive_that_leaves_its_folder_is_refused(server: Server, cache: Path) -> None:
    with pytest.raises(DataError, match="leaves its folder"):
        fetch_unpacked(_zipped(server, **{"..__..__evil.txt": "1"}), cache)
    assert not (cache.parent / "evil.txt").exists()


def test_what_is_no_archive_says_so(server: Server, cache: Path) -> None:
    with pytest.raises(DataError, match="no whole zip archive"):
        fetch_unpacked(Remote(f"{server.url}/file.bin", HASH), cache)
