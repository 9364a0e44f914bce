"""What the command `serve` does before there is a server."""

import gc

import pytest
from typer.testing import CliRunner

from m6rec.cli import app
from m6rec.commands.serve import _to_stay


@pytest.fixture
def thawed():
    """Leave nothing that later tests could not collect."""
    yield
    gc.unfreeze()


def test_no_garbage_is_looked_for_while_it_loads_nor_in_what_it_loaded(thawed):
    with _to_stay():
        assert not gc.isenabled()
        loaded = [[]]
        loaded.append(loaded)
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(each is loaded for each in gc.get_objects())


def test_a_start_that_fails_leaves_the_collector_as_it_was(tmp_path):
    assert CliRunner().invoke(app, ["serve", str(tmp_path / "nowhere"), "--port", "0"]).exit_code != 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
