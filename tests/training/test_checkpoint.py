import json
import logging
import resource

import pytest
import torch

from m6rec.errors import CheckpointError
from m6rec.training.checkpoint import Checkpoints, step_name


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def save(checkpoints, step, size=3, needs=None):
    tensors = {"weights": {"w": torch.full((size,), float(step))}, "optimizer": {"w|m": torch.ones(2)}}
    return checkpoints.save(step_name(step), tensors, {"step": step}, needs)


def test_what_goes_in_comes_out(checkpoints):
    save(checkpoints, 7)
    found = checkpoints.latest()
    assert found.state == {"step": 7}
    assert found.tensors("weights")["w"].tolist() == [7.0] * 3
    assert found.tensors("average") == {}


def test_none_is_there_at_first(checkpoints):
    assert checkpoints.latest() is None


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "no state", "half a state"])
def test_a_broken_newest_one_is_skipped_with_a_warning(checkpoints, damage, caplog):
    save(checkpoints, 1)
    folder = save(checkpoints, 2)
    weights, state = folder / "weights.safetensors", folder / "state.json"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-4])
    elif damage == "flip":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "gone":
        weights.unlink()
    elif damage == "no state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:40])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest().state == {"step": 1}
    assert "step-00000002" in caplog.text


def test_all_broken_is_an_error_and_not_a_fresh_start(checkpoints):
    (save(checkpoints, 1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint"):
        checkpoints.latest()


def test_another_format_is_refused(checkpoints):
    state = save(checkpoints, 1) / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, expected 1"):
        checkpoints.open("step-00000001")


def test_a_full_disk_leaves_the_former_one_as_it_was(checkpoints):
    save(checkpoints, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot write"):
            save(checkpoints, 2, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest().state == {"step": 1}
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_state_that_cannot_be_written_counts_as_one(checkpoints, monkeypatch):
    save(checkpoints, 1)

    def no_room(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(CheckpointError, match="No space left"):
        save(checkpoints, 2)
    assert checkpoints.latest().state == {"step": 1}


def test_writing_over_a_broken_one(checkpoints):
    (save(checkpoints, 1) / "state.json").unlink()
    save(checkpoints, 1)
    checkpoints.prune()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_prune_keeps_the_newest_and_what_they_need(checkpoints):
    for best in (1, 2):
        checkpoints.save(f"best-{best}", {"weights": {"w": torch.ones(1)}}, {})
    for step in range(1, 5):
        save(checkpoints, step, needs="best-1" if step == 1 else "best-2")
    (checkpoints.folder / ".half-killed").mkdir()
    checkpoints.prune()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["best-2", "step-00000003", "step-00000004"]


def test_shapes_of_memory_do_not_matter(checkpoints):
    table = torch.arange(6.0).reshape(2, 3)
    checkpoints.save("step-00000001", {"weights": {"turned": table.T}}, {})
    assert torch.equal(checkpoints.latest().tensors("weights")["turned"], table.T)
