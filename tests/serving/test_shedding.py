import pytest

from m6rec.errors import ConfigError
from m6rec.serving.shedding import Controller, Ladder, Rung, SheddingConfig

LADDER = Ladder((Rung("full"), Rung("fewer", 20), Rung("fewest", 5), Rung("popular", model=False)))


def after(controller, intervals, backlog=0.0, shares=(), start=0.0):
    for step in range(1, intervals + 1):
        for share in shares:
            controller.saw(share)
        controller.adjust(start + 0.25 * step, backlog)
    return start + 0.25 * intervals


def test_it_multiplies_down_under_pressure_and_adds_up_in_calm():
    controller = Controller(LADDER, 0.0)
    time = after(controller, 2, backlog=0.9)
    assert controller.level == pytest.approx(0.49)
    assert LADDER.rungs[controller.rung].name == "fewer"
    time = after(controller, 4, backlog=0.6, start=time)
    assert controller.level == pytest.approx(0.49)  # neither pressed nor calm
    after(controller, 4, backlog=0.1, start=time)
    assert controller.level == pytest.approx(0.69)


def test_slow_answers_press_as_a_long_queue_does():
    controller = Controller(LADDER, 0.0)
    after(controller, 1, shares=[0.1] * 15 + [0.95] * 5)
    assert controller.level == pytest.approx(0.7)
    after(controller, 1, shares=[0.1] * 99 + [2.0], start=0.25)
    assert controller.level == pytest.approx(0.75)  # one in a hundred is no pressure


def test_it_never_leaves_the_rungs_with_a_model_and_comes_back_soon():
    controller = Controller(LADDER, 0.0)
    time = after(controller, 100, backlog=5)
    assert LADDER.rungs[controller.rung].name == "fewest"
    after(controller, 20, start=time)
    assert controller.rung == 0


def test_it_is_set_once_an_interval():
    controller = Controller(LADDER, 0.0)
    for now in (0.1, 0.2, 0.26, 0.3, 0.4):
        controller.adjust(now, 5.0)
    assert controller.level == pytest.approx(0.7)


@pytest.mark.parametrize(
    "rungs",
    [(), (Rung("popular", model=False),), (Rung("popular", model=False), Rung("full"))],
)
def test_a_ladder_without_a_model_at_its_top_is_refused(rungs):
    with pytest.raises(ConfigError, match="those with a model first"):
        Ladder(rungs)


def test_a_kind_of_request_passes_by_the_rungs_that_are_not_for_it():
    ladder = Ladder(
        (Rung("full"), Rung("fewer", 20, kinds=("list",)), Rung("shallow", depth=2, kinds=("list", "rank")))
    )
    assert [ladder.down("list", start) for start in range(3)] == [[0, 1, 2], [1, 2], [2]]
    assert [ladder.down("rank", start) for start in range(3)] == [[0, 2], [0, 2], [2]]
    assert [ladder.down("chat", start) for start in range(3)] == [[0]] * 3
    with pytest.raises(ConfigError, match="the first for all"):
        Ladder((Rung("full", kinds=("list",)),))


def test_impossible_settings_are_told_at_once():
    with pytest.raises(ConfigError, match=r"factor.*\n.*interval_ms.*\n.*low"):
        SheddingConfig(factor=0, interval_ms=0, low=0.9)
