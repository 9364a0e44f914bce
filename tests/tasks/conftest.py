from collections.abc import Callable
from pathlib import Path

import pytest

from m6rec.assemble import Experiment, build
from m6rec.recipe import read_recipe
from tests.little_shop import SMALL, prepare_shop, shop_events


@pytest.fixture
def make(shop: Path, tiny_folder: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Build a small recipe over the little shop (or ``data=...``): ``make("retrieval", "task.dim=8")``."""

    def made(recipe: str, *words: str, data: Path = shop) -> Experiment:
        places = [f"data={data}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}"]
        return build(read_recipe(recipe, [*places, *SMALL[recipe], *words]))

    return made


@pytest.fixture(scope="session")
def test_shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the little shop in which only the test period differs: users' last items have changed hands."""
    events = shop_events()
    last = {row["who"]: place for place, row in enumerate(events) if row["what"]}
    places = list(last.values())
    goods = [events[place]["what"] for place in places]
    for place, what in zip(places, goods[1:] + goods[:1], strict=True):
        events[place] = {**events[place], "what": what, "stars": 6 - events[place]["stars"]}
    return prepare_shop(tmp_path_factory.mktemp("shuffled"), events)
