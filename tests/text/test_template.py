import pytest

from m6rec.errors import TemplateError
from m6rec.text.template import MAX_VALUE_CHARACTERS, Phrase, Phrases, Place, clean, leaf, read, words


def phrases(*sources, path="x.yaml"):
    return Phrases(
        [Phrase(source, Place(path, f"item[{number}]", number + 3)) for number, source in enumerate(sources)]
    )


def test_phrase_vanishes_with_its_missing_field_and_takes_its_punctuation_along():
    item = phrases("{{ title }}", ", {{ brand }}", " ({{ price }})")
    assert item.render({"title": "Soap", "price": 4.0}) == "Soap (4)"
    assert item.render({"brand": "Dove"}) == "Dove"
    assert item.render({}) == ""


@pytest.mark.parametrize(
    "source", ["{{ a.b.c }}", "{{ a + 1 }}", "{% for x in a %}{{ x }}{% endfor %}", "{{ a | words }}", "{{ a() }}"]
)
def test_anything_done_to_a_missing_field_makes_the_phrase_vanish(source):
    assert phrases("Soap", source).render({}) == "Soap"


def test_conditions_and_defaults_may_ask_for_a_missing_field():
    assert phrases("{% if brand %}by {{ brand }}{% else %}no brand{% endif %}").render({}) == "no brand"
    assert phrases("{{ brand | default('no brand') }}").render({}) == "no brand"


@pytest.mark.parametrize(
    "value", ["{{ 7*7 }}", "{% for x in range(9) %}a{% endfor %}", "{# #}", "{{ ''.__class__ }}", "${7*7}", "%s {0}"]
)
def test_template_syntax_in_a_value_stays_what_it_is(value):
    assert phrases("{{ title }}, nice").render({"title": value}) == f"{value}, nice"


def test_values_are_not_escaped():
    assert phrases("{{ title }}").render({"title": 'Rock & Roll <3 "it\'s"'}) == 'Rock & Roll <3 "it\'s"'


def test_numbers_and_lists_are_written_for_people():
    rendered = phrases("{{ a }} {{ b }} {{ c }} {{ d }} {{ e }}").render(
        {"a": 4.0, "b": 0.25, "c": 7, "d": ["x", "y"], "e": True}
    )
    assert rendered == "4 0.25 7 x, y yes"


def test_clean_drops_what_says_nothing():
    record = {
        "a": None,
        "b": " \n",
        "c": float("nan"),
        "d": [],
        "e": {},
        "f": {"g": None, "h": "x  y"},
        "i": 0,
        "j": False,
        "k": "l\tm",
    }
    assert clean(record) == {"f": {"h": "x y"}, "i": 0, "j": False, "k": "l m"}


def test_clean_cuts_endless_values():
    assert len(clean({"title": "x" * 10_000})["title"]) == MAX_VALUE_CHARACTERS


def test_filters():
    assert leaf("A > B > C") == "C"
    assert leaf("A > B > C", 2) == "C, B"
    assert leaf("A", 3) == "A"
    assert words("a| b |") == "a, b"
    assert words([1, "b"]) == "1, b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ title | lowr }}", "unknown filter 'lowr'; did you mean lower"),
        ("{{ title | wrds }}", "unknown filter 'wrds'; did you mean words"),
        ("{% if title is defind %}{% endif %}", "unknown test 'defind'; did you mean .*defined"),
        ("{{ title", "in '{{ title'"),
        ("{% if title %}x", "endif"),
    ],
)
def test_bad_syntax_names_file_line_and_key(source, message):
    with pytest.raises(TemplateError, match=r"x\.yaml, line 3, key 'item\[0\]'.*" + message):
        phrases(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ title.__class__.__mro__ }}",
        "{{ title.pop.__func__ }}",
        "{{ tags.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ title + 1 }}",
    ],
)
def test_forbidden_and_impossible_expressions_do_not_run(source):
    try:
        rendered = phrases(source).render({"title": "x", "tags": ["y"]})
    except TemplateError as error:
        assert "line 3" in str(error)  # noqa: PT017
    else:
        assert rendered == ""


def write(folder, text):
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item: x\nitme: y\n", r"line 2, key 'itme': unknown key; did you mean item"),
        ("item: x\nitem: y\n", r"line 2, key 'item': stands twice \(first on line 1\)"),
        ("item: [x\n", r"line \d: not valid YAML"),
        ("- item\n", "got list, expected a mapping"),
        ("", "got NoneType, expected a mapping"),
        ("item: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    with pytest.raises(TemplateError, match=message):
        read(write(tmp_path, text), ("item", "stub"))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "own.yaml").write_bytes(b"item: \xff\xfe\xfa")
    with pytest.raises(TemplateError, match="cannot read"):
        read(tmp_path / "own.yaml", ("item",))


def test_lines_point_into_lists_and_mappings(tmp_path):
    document = read(write(tmp_path, "item:\n  - a\n  - b\nverbs:\n  buy: c\n"), ("item", "verbs"))
    assert document.place("item[1]").line == 3
    assert document.place("verbs.buy").line == 5
    with pytest.raises(TemplateError, match="line 1, key 'item': got 7, expected a phrase"):
        document.phrases("item", 7)
