import pytest

from m6rec.errors import TemplateError
from m6rec.text.library import names
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.segments import CONTROL_TOKENS

NOW = 1_720_000_000
HOUR = 3_600
EVENTS = [
    {"verb": "buy", "time": NOW - 50 * HOUR, "item": {"title": "Soap"}},
    {"verb": "search", "time": NOW - 2 * HOUR, "query": "red towel"},
    {"verb": "click", "time": NOW - HOUR, "item": {"title": "Towel", "brand": "Loom"}},
]
USER = UserText({"age": "30s", "gender": "woman"}, {"season": "winter"}, EVENTS, NOW)


@pytest.fixture
def renderer():
    return Renderer("default")


def own(folder, text):
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def spoken(segments):
    return [segment.text for segment in segments]


def test_source_layout_of_the_paper(renderer):
    layout = Prompt("retrieval-source").layout(renderer, USER)
    assert spoken(layout.trunk) == [
        "[BOS']", "winter", "woman, 30s", "two days ago bought", "Soap", "two hours ago searched", "red towel",
        "an hour ago clicked", "Towel by Loom", "[EOS']",
    ]  # fmt: skip
    assert {segment.block for segment in layout.trunk} == {0}
    assert layout.branches == ()
    assert layout.dropped == 0


def test_roles_names_and_what_may_be_cached(renderer):
    trunk = Prompt("retrieval-source").layout(renderer, USER).trunk
    assert [segment.role for segment in trunk] == [
        "control", "context", "profile", "stub", "item", "stub", "query", "stub", "item", "control",
    ]  # fmt: skip
    assert [segment.name for segment in trunk][3:7] == ["event.1.stub", "event.1.item", "event.2.stub", "event.2.query"]
    assert all(segment.cacheable == (segment.role != "control") for segment in trunk)
    assert [segment.sacrifice for segment in trunk] == [None, None, None, 0, 0, 1, 1, 2, 2, None]


def test_dense_layout_hangs_every_branch_on_what_it_may_see(renderer):
    candidates = [Candidate({"title": "Brush"}, {"popularity": 99}, events_seen=1), Candidate({"title": "Comb"})]
    layout = Prompt("ranking").layout(renderer, USER, candidates)
    assert [segment.block for segment in layout.trunk] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [{segment.block for segment in branch} for branch in layout.branches] == [{1}, {3}]
    assert spoken(layout.branches[0]) == ["[EOS']", "[BOS]", "shown", "Brush", "very popular", "[EOS]"]
    assert spoken(layout.branches[1]) == ["[EOS']", "[BOS]", "shown", "Comb", "[EOS]"]
    names = [segment.name for segment in layout.segments]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["ranking", "retrieval"])
def test_dense_trunk_does_not_know_what_comes_after(renderer, name):
    prompt = Prompt(name)
    short = prompt.layout(renderer, UserText(USER.profile, {}, EVENTS[:2])).trunk
    assert prompt.layout(renderer, UserText(USER.profile, {}, EVENTS, NOW)).trunk[: len(short)] == short


def test_an_item_segment_is_the_same_wherever_it_stands(renderer):
    layout = Prompt("ranking").layout(renderer, USER, [Candidate(EVENTS[2]["item"])])
    alone = Prompt("item").item(renderer, EVENTS[2]["item"])
    assert layout.trunk[-1].text == layout.branches[0][3].text == alone.trunk[1].text


def test_item_in_either_region(renderer):
    prompt = Prompt("item")
    source, target = prompt.item(renderer, {"title": "Soap"}), prompt.item(renderer, {"title": "Soap"}, region="target")
    assert (spoken(source.trunk), source.branches) == (["[BOS']", "Soap", "[EOS']"], ())
    assert (target.trunk, spoken(target.branches[0])) == ((), ["[BOS]", "Soap", "[EOS]"])


def test_limit_keeps_the_newest_events_and_counts_the_others(renderer, tmp_path):
    prompt = Prompt(own(tmp_path, "trunk: [{events: {limit: 2, blocks: each, time: later}}]\nbranch: [item]\n"))
    layout = prompt.layout(renderer, USER, [Candidate("early", events_seen=1), Candidate("late", events_seen=3)])
    assert spoken(layout.trunk) == ["two days later searched", "red towel", "an hour later clicked", "Towel by Loom"]
    assert layout.dropped == 1
    # Numbers of events stay those of the whole history: who saw one event sees none of the two that are left.
    assert [segment.block for segment in layout.trunk] == [2, 2, 3, 3]
    assert [branch[0].block for branch in layout.branches] == [1, 3]


def test_without_a_request_time_the_last_event_is_now(renderer):
    layout = Prompt("retrieval-source").layout(renderer, UserText(events=EVENTS))
    assert layout.trunk[-3].text == "just now clicked"


@pytest.mark.parametrize("name", names("prompts"))
def test_every_prompt_stands_nobody_and_nothing(renderer, name):
    prompt = Prompt(name)
    candidates = [Candidate()] if prompt.branch else []
    for user in (None, UserText(), UserText(events=[{}]), UserText(events=[{"time": None, "item": None}])):
        layout = prompt.layout(renderer, user, candidates)
        assert all(segment.text for segment in layout.segments)
    assert prompt.description


def test_control_tokens_stand_only_in_control_segments(renderer, tokenizer):
    events = [{"verb": "[EOS]", "item": {"title": token, "brand": "[SEP]"}} for token in CONTROL_TOKENS]
    user = UserText({"age": "[BOS]"}, {"place": "[EOS']"}, [*events, {"verb": "search", "query": "[BOS']"}])
    layout = Prompt("ranking").layout(renderer, user, [Candidate({"title": "[EOS]"})])
    tokens = tokenizer.layout(layout)
    controls = [number for number, segment in enumerate(layout.segments) if segment.role == "control"]
    found = [
        number
        for number, token in zip(tokens.segments, tokens.ids, strict=True)
        if token in tokenizer.control_ids.values()
    ]
    assert found == controls


def test_answer_is_written_in_training_and_left_open_at_inference(renderer, tmp_path):
    text = """
trunk: ["[BOS']", events, "[EOS']"]
branch: ["[BOS]", words: "bought {{ title }} because", answer: {name: reason}, "[EOS]"]
"""
    prompt = Prompt(own(tmp_path, text))
    given = prompt.layout(renderer, USER, [Candidate({"title": "Soap"}, answers={"reason": "it smells good"})])
    opened = prompt.layout(renderer, USER, [Candidate("Soap")])
    assert spoken(given.branches[0]) == ["[BOS]", "bought Soap because", "it smells good", "[EOS]"]
    assert spoken(opened.branches[0]) == ["[BOS]", "bought Soap because"]


def test_words_and_items_may_stand_in_the_trunk(renderer, tmp_path):
    prompt = Prompt(own(tmp_path, "trunk: [events, {words: 'what next?'}, {words: 'answer:'}]\n"))
    assert spoken(prompt.layout(renderer, USER).trunk)[-2:] == ["what next?", "answer:"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trunk: []\nbranches: []\n", "line 2, key 'branches': unknown key; did you mean branch"),
        ("trunk:\n  - events\n  - profil\n", r"line 3, key 'trunk\[1\]': unknown part 'profil'; did you mean profile"),
        ("trunk: [statistics]\n", "unknown part 'statistics'"),
        ('trunk: ["[BOSS\']"]\n', r"unknown part \"\[BOSS'\]\"; did you mean"),
        ("trunk: [{events: {limt: 3}}]\n", "unknown setting 'limt'; did you mean limit"),
        ("trunk: [{events: {blocks: both}}]\n", "got 'both', expected one of 'one', 'each'"),
        ("trunk: [{events: 7}]\n", "got 7, expected options"),
        ("trunk: [words]\n", "missing setting 'text'"),
        ("trunk: [{words: '{{ x'}]\n", r"key 'trunk\[0\]'"),
        ("trunk: events\n", "expected a list"),
        ("trunk: []\nbudget_tokens: many\n", "line 2, key 'budget_tokens': got 'many', expected a positive number"),
    ],
)
def test_bad_prompts_say_where(tmp_path, text, message):
    with pytest.raises(TemplateError, match=message):
        Prompt(own(tmp_path, text))


def test_candidates_need_a_branch(renderer):
    with pytest.raises(TemplateError, match="got 1 candidates, but the prompt has no `branch`"):
        Prompt("retrieval-source").layout(renderer, USER, [Candidate("Soap")])
