"""Plan files: written and read back as they are, and refused with the reason where they are none."""

import pytest

from m6rec.errors import ConfigError
from m6rec.serving.planning.plan import Plan, read_plan, write_plan
from m6rec.serving.stage import StagePlan


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = Plan(
        deadline_ms=250.0,
        threads=2,
        stages={"rank": StagePlan(workers=2, max_batch=4, max_wait_ms=1.5), "encode": StagePlan(queue_cap=3)},
        cache_bytes={"query": 1 << 20, "segments": 0},
        found={"log": "requests.jsonl", "expected": {"goodput": 31.5}},
    )
    write_plan(plan, tmp_path / "plans" / "plan.yaml")
    assert read_plan(tmp_path / "plans" / "plan.yaml") == plan


def test_what_is_not_said_keeps_its_own(tmp_path):
    (tmp_path / "plan.yaml").write_text("stages: {rank: {workers: 2}}\n")
    assert read_plan(tmp_path / "plan.yaml").stages == {"rank": StagePlan(workers=2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: {rank: {worker: 2}}", r"stages\.rank\.worker'; did you mean workers"),
        ("stages: {rank: {workers: 0}}", r"workers: got 0"),
        ("format: 9", "this m6rec reads 1"),
        ("threads: 0\ndeadline_ms: -1", r"deadline_ms: got -1.0(.|\n)*threads: got 0"),
        ("cache_bytes: {query: -5}", r"cache_bytes\.query: got -5"),
        ("[1, 2]", "expected a mapping"),
        ("stages: {", "cannot be read as a plan"),
    ],
)
def test_what_is_no_plan_says_why(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_plan(tmp_path / "plan.yaml")


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="m6rec plan LOG"):
        read_plan(tmp_path / "plan.yaml")
