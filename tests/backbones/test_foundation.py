"""The embedded foundation: small, whole, in the wheel, and refused where a byte of it is wrong."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from m6rec.backbones.foundation import CARD_FILE, check_folder, foundation_folder, read_card
from m6rec.backbones.resolve import resolve_backbone
from m6rec.errors import BackboneError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(foundation_folder(), tmp_path / "foundation")
    return tmp_path / "foundation"


def test_it_is_small_and_says_where_it_is_from():
    folder = foundation_folder()
    card = read_card(folder)
    backbone = resolve_backbone("foundation")
    assert sum(parameter.numel() for parameter in backbone.parameters()) <= 5_000_000
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10 * 2**20
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert card["command"].startswith("python scripts/foundation.py")
    assert card["figures"]["test"]["nats_per_title"] > 0
    assert "model.safetensors" in card["sha256"]
    assert not any("/" in str(value) for value in (card["recipe"]["data"], card["recipe"]["out"]))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_refused(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(BackboneError, match=f"{name} with sha256"):
        check_folder(copied)


@pytest.mark.parametrize("name", ["model.safetensors", CARD_FILE])
def test_a_missing_file_is_refused(copied, name):
    (copied / name).unlink()
    with pytest.raises(BackboneError, match="install m6rec again"):
        check_folder(copied)


def test_it_is_in_the_wheel(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    wheel = next(builder.build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        found = {name.rpartition("/")[2] for name in archive.namelist() if name.startswith("m6rec/foundation/")}
    assert {CARD_FILE, *json.loads((foundation_folder() / CARD_FILE).read_text())["sha256"]} <= found
