import numpy as np
import pytest
import torch

from m6rec.data.store import Dataset
from m6rec.errors import DataError, RunError
from m6rec.tasks.catalogue import Catalogue
from m6rec.text.render import Renderer


@pytest.fixture
def catalogue():
    titles = ["Red  Shirt", "blue lamp", "red shirt", None]
    records = [{} if title is None else {"title": title, "price": 3.5} for title in titles]
    return Catalogue(
        keys=["a", "b", "c", "d"],
        records=records,
        texts=[title or "something" for title in titles],
        ids=np.array([1, -1, 0, -1]),
        offered=np.ones(4, dtype=bool),
        vectors=torch.arange(8.0).view(4, 2),
    )


def test_residuals_go_to_trained_items_alone(shop):
    dataset = Dataset.open(shop)
    train = dataset.histories().before("train")
    few = train.select(train.items < 9)
    found = Catalogue.of(dataset, Renderer("default"), few)
    assert set(np.flatnonzero(found.ids >= 0)) == set(np.unique(few.items[few.items >= 0]))
    assert sorted(found.ids[found.ids >= 0]) == list(range(found.num_trained))
    assert found.offered.all()
    assert found.texts[found.find("g09")].startswith("blue lamp")


def test_keys_go_before_titles_and_spelling_is_forgiven(catalogue):
    assert [catalogue.find(key) for key in ("a", "b", "c", "d")] == [0, 1, 2, 3]
    assert catalogue.find(" BLUE   Lamp ") == 1
    assert catalogue.find("red shirt") == 0  # the first of that title
    assert catalogue.find("nothing") is None
    assert catalogue.find("None") is None
    assert catalogue.record(1) == {"title": "blue lamp", "price": 3.5, "key": "b"}


def test_added_items_have_no_residual(catalogue):
    catalogue.add(["e"], [{"title": "green chair"}], ["green chair"], torch.tensor([[9.0, 9.0]]))
    assert len(catalogue) == 5
    assert catalogue.find("e") == catalogue.find("green chair") == 4
    assert catalogue.ids.tolist() == [1, -1, 0, -1, -1]
    assert catalogue.vectors[4].tolist() == [9.0, 9.0]
    assert catalogue.num_trained == 2


def test_a_taken_key_adds_nothing(catalogue):
    with pytest.raises(DataError, match="taken: a"):
        catalogue.add(["e", "a"], [{}, {}], ["x", "y"], torch.zeros(2, 2))
    with pytest.raises(DataError, match="twice"):
        catalogue.add(["e", "e"], [{}, {}], ["x", "y"], torch.zeros(2, 2))
    assert len(catalogue) == len(catalogue.vectors) == 4
    assert catalogue.find("e") is None


def test_removed_items_keep_their_place(catalogue):
    assert catalogue.remove(["b", "b"]) == [1]
    assert catalogue.offered.tolist() == [True, False, True, True]
    assert catalogue.find("b") == 1
    with pytest.raises(DataError, match="zz"):
        catalogue.remove(["a", "zz"])
    with pytest.raises(DataError, match="b"):
        catalogue.remove(["b"])
    assert catalogue.offered.sum() == 3
    catalogue.add(["b"], [{"title": "blue lamp"}], ["blue lamp"], torch.zeros(1, 2))
    assert catalogue.find("b") == catalogue.find("blue lamp") == 4


def test_saved_and_loaded_it_is_the_same(catalogue, tmp_path):
    catalogue.remove(["c"])
    catalogue.save(tmp_path)
    found = Catalogue.load(tmp_path)
    for name in ("keys", "records", "texts"):
        assert getattr(found, name) == getattr(catalogue, name)
    for name in ("ids", "offered", "vectors"):
        assert (getattr(found, name) == getattr(catalogue, name)).all()
    found.remove(["a"])  # what is loaded can be changed
    assert found.find("red shirt") == 0


def test_a_catalogue_without_vectors(catalogue, tmp_path):
    catalogue.vectors = None
    catalogue.save(tmp_path)
    assert Catalogue.load(tmp_path, encoded=False).vectors is None
    with pytest.raises(RunError, match="catalogue"):
        Catalogue.load(tmp_path)
