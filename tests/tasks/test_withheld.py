"""A task's files without its items: nothing of any item is left, and the task still opens."""

import shutil
from pathlib import Path

import pytest
import torch

from m6rec.errors import RunError
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.heads import read_tensors
from m6rec.tasks.withheld import withhold_items


@pytest.fixture
def copy(tmp_path):
    """Return a copy of a run's task folder."""

    def of(run):
        return Path(shutil.copytree(run / "task", tmp_path / "task"))

    return of


def test_retrieval_loses_residuals_links_and_vectors(retrieval_run, copy):
    folder = copy(retrieval_run)
    before = read_tensors(folder / "heads.safetensors")
    assert withhold_items(folder) == {"id_residual": False}
    after = read_tensors(folder / "heads.safetensors")
    assert {name for name in before if name not in after} == {"tower.residual.weight"}
    assert (after["probe_items"] == -1).all()
    assert after["at_training"].tolist() == [0, float(before["at_training"][1])]
    same = set(after) - {"probe_items", "at_training"}
    assert all(torch.equal(after[name], before[name]) for name in same)
    assert read_tensors(folder / "links.safetensors")["link_weights"].numel() == 0
    catalogue = Catalogue.load(folder / "catalogue")
    assert (len(catalogue), catalogue.vectors.shape) == (0, (0, 32))


def test_ranking_loses_statistics(ranking_run, copy):
    folder = copy(ranking_run)
    assert withhold_items(folder) == {}
    assert read_tensors(folder / "heads.safetensors")["item_statistics"].shape == (0, 2)
    assert len(Catalogue.load(folder / "catalogue", encoded=False)) == 0


def test_a_damaged_folder_says_so(retrieval_run, copy):
    folder = copy(retrieval_run)
    (folder / "heads.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="train again"):
        withhold_items(folder)
