import pytest

from m6rec.errors import ConfigError
from m6rec.serving.graph import Graph
from m6rec.serving.stage import Event, Stage, StagePlan, last_update, run_batch
from tests.serving.steps import adding


def stages(**parents):
    return tuple(Stage(name, adding(name), tuple(own)) for name, own in parents.items())


def test_stages_are_ordered_and_know_who_comes_after():
    graph = Graph(stages(d="bc", b="a", c="a", a=""))
    assert [stage.name for stage in graph.order] in (["a", "b", "c", "d"], ["a", "c", "b", "d"])
    assert {stage.name for stage in graph.after["a"]} == {"b", "c", "d"}
    assert [stage.name for stage in graph.after["b"]] == ["d"]


def test_a_circle_is_refused_and_named():
    with pytest.raises(ConfigError, match=r"circle of stages: (a -> b -> a|b -> a -> b)"):
        Graph(stages(a="b", b="a"))


def test_an_unknown_parent_has_its_nearest_name():
    with pytest.raises(ConfigError, match=r"stage 'b': unknown parent 'c'"):
        Graph(stages(a="", b="c"))


def test_names_are_distinct():
    with pytest.raises(ConfigError, match="distinct names"):
        Graph((Stage("a", adding("a")), Stage("a", adding("a"))))


def test_what_runs_before_admission_is_inline_and_at_the_front():
    with pytest.raises(ConfigError, match="expected inline"):
        Stage("a", adding("a"), at_door=True)
    late = Stage("b", adding("b"), ("a",), kind="inline", at_door=True)
    with pytest.raises(ConfigError, match="runs before admission, but 'a' does not"):
        Graph((Stage("a", adding("a")), late))
    with pytest.raises(ConfigError, match="got streams with kind 'process'"):
        Stage("a", adding("a"), kind="process", streams=True)


def test_plans_go_to_their_stages():
    graph = Graph(stages(a="", b="a")).planned({"b": StagePlan(workers=3)})
    assert [stage.plan.workers for stage in graph.order] == [1, 3]
    with pytest.raises(ConfigError, match="plan for an unknown stage 'c'"):
        graph.planned({"c": StagePlan()})


def event(**payload):
    return Event(0, payload, 0.0, 1.0)


def test_what_a_request_does_not_want_is_behind_it():
    graph = Graph(
        (
            Stage("a", adding("a"), wants=lambda payload: False),
            Stage("b", adding("b"), ("a",)),
            Stage("c", adding("c"), ("b",), wants=lambda payload: False),
        )
    )
    one = event()
    assert [stage.name for stage in graph.next(one)] == ["b"]
    one.through.add("b")
    assert graph.next(one) == []
    assert one.through == {"a", "b", "c"}


class Listener:
    def __init__(self, most=99):
        self.heard, self.most = [], most

    @property
    def is_open(self):
        return len(self.heard) < self.most

    def push(self, piece):
        self.heard.append(piece)
        return self.is_open


def test_a_stream_hands_its_pieces_on_and_ends_with_an_update():
    stage = Stage("write", lambda payload: iter(["one", "two", {"answer": 1}]), streams=True)
    listener = Listener()
    assert last_update(stage, {}, listener) == {"answer": 1}
    assert listener.heard == ["one", "two"]
    assert last_update(stage, {}, Listener(most=1)) == {}
    assert last_update(stage, {}, None) == {"answer": 1}


def test_a_stream_without_an_end_is_a_mistake():
    stage = Stage("write", lambda payload: iter(["one"]), streams=True)
    with pytest.raises(ConfigError, match="ended its stream without an update"):
        last_update(stage, {}, None)
    assert isinstance(run_batch(stage, [event()]), ConfigError)
