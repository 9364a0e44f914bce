"""A Hub of one's own, which the real client talks to, with a base model on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import WRITE, HubServer, Model, connect


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> Iterator[HubServer]:
    """Return a running stand-in; ``me/tiny`` on it is the base model of the little runs."""
    server = HubServer()
    connect(server, monkeypatch, tmp_path / "home", token=WRITE)
    server.models["me/tiny"] = Model()
    server.models["me/tiny"].add({path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    yield server
    server.close()
