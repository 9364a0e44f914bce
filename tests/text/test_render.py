import pytest

from m6rec.data.statistics import CROSS_NAMES, ITEM_NAMES
from m6rec.errors import TemplateError
from m6rec.text.library import names
from m6rec.text.render import Renderer

NOW = 1_720_000_000
HOSTILE = ["{{ 7*7 }}", "[EOS]", "x" * 10_000, "😀", "שלום", "红色指甲油", "{% raw %}", "A & B", "\u202eevil", "None"]


@pytest.fixture(params=names("data_templates"))
def renderer(request):
    return Renderer(request.param)


@pytest.fixture
def plain():
    return Renderer("default")


def own(folder, text):
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_domain_renders_whatever_is_there(renderer):
    for record in (
        {},
        {"title": ""},
        {"title": None, "colour": "red"},
        {"brand": "Dove"},
        {"title": "Soap", "price": float("nan")},
    ):
        assert renderer.item(record)
    assert renderer.event({}) == ("", renderer.item({}))
    assert renderer.profile({}) == renderer.context({}) == ""


def test_every_domain_can_be_kept_in_one_file(renderer, tmp_path):
    renderer.save(tmp_path / "kept.yaml")
    kept = Renderer(tmp_path / "kept.yaml")
    assert "extends" not in (tmp_path / "kept.yaml").read_text(encoding="utf-8")
    assert kept.fingerprint == renderer.fingerprint
    event = {"verb": "buy", "time": NOW - 9_000, "item": {"title": "Soap", "category": "A > B", "year": 1995}}
    assert kept.event(event, now=NOW, previous=NOW - 10_000) == renderer.event(event, now=NOW, previous=NOW - 10_000)
    assert kept.context({"time": NOW}) == renderer.context({"time": NOW})


@pytest.mark.parametrize("title", HOSTILE)
def test_every_domain_leaves_titles_as_they_are(renderer, title):
    assert title[:1_000] in renderer.item({"title": title, "category": "Soap"})


def test_item_never_holds_time_or_user(plain):
    record = {"title": "Soap", "brand": "Dove"}
    assert plain.item({**record, "time": NOW, "ago": "x", "age": "30s"}) == plain.item(record)


def test_ready_made_words_pass_through(plain):
    assert plain.item(" Red\nsoap ") == "Red soap"
    assert plain.item("") == plain.item({})
    assert plain.event({"item": "Red soap"})[1] == "Red soap"


def test_event_is_a_stub_and_an_object(plain):
    event = {"verb": "buy", "time": NOW - 3 * 3_600, "item": {"title": "Soap", "brand": "Dove"}}
    assert plain.event(event, now=NOW) == ("three hours ago bought", plain.item(event["item"]))
    assert plain.event(event, previous=NOW - 3 * 3_600 - 2 * 86_400)[0] == "two days later bought"
    assert plain.event(event)[0] == "bought"
    assert plain.event({"item": {"title": "Soap"}}, now=NOW)[0] == ""


def test_search_is_an_event_without_an_item(plain):
    assert plain.event({"verb": "search", "query": "red soap"}) == ("searched", "red soap")
    assert plain.query("red soap") == "red soap"
    assert plain.query("") == plain.event({"verb": "search"})[1] != ""


def test_verb_that_no_template_knows_is_written_as_it_is(plain):
    assert plain.event({"verb": "gifted", "item": "Soap"})[0] == "gifted"


def test_film_with_year_and_genres():
    record = {"title": "Heat", "year": "1995", "category": "Action|Crime"}
    assert Renderer("movies").item(record) == "Heat (1995), action, crime"


def test_brand_is_said_once(plain):
    record = {"title": "OPI Nail Lacquer", "brand": "OPI", "category": "Makeup > Nails > Polish"}
    assert plain.item(record) == "OPI Nail Lacquer, Polish, Nails"
    assert plain.item({**record, "brand": "Essie"}) == "OPI Nail Lacquer by Essie, Polish, Nails"
    assert plain.item({"brand": "Essie"}) == "by Essie"


def test_movie_ratings_become_words():
    renderer = Renderer("movies")
    stubs = [renderer.event({"verb": "rate", "value": value, "item": "Heat"})[0] for value in (5.0, 4.0, 3.0, 0.5)]
    assert len(set(stubs)) == 3
    assert stubs[0] == stubs[1]
    assert renderer.event({"verb": "rate", "item": "Heat"})[0] == ""


def test_context_guesses_nobodys_season(plain):
    assert plain.context({"time": NOW}) == "July morning"
    assert plain.context({"time": NOW, "hemisphere": "north"}) == "summer morning"
    assert plain.context({"time": NOW, "hemisphere": "south", "place": "Lima"}) == "winter morning in Lima"
    assert plain.context({"time": NOW, "hemisphere": "south", "season": "rainy season"}) == "rainy season morning"


def test_statistics_in_bands(plain):
    assert plain.statistic("category_count", 0) != plain.statistic("category_count", 1)
    assert plain.statistic("category_count", 3) == plain.statistic("category_count", 9)
    assert plain.statistic("brand_count", 0) == plain.statistic("category_count", float("nan")) == ""
    with pytest.raises(TemplateError, match="no statistic 'popularty'; did you mean popularity"):
        plain.statistic("popularty", 3)


def test_every_domain_has_words_for_every_statistic(renderer):
    for name in (*ITEM_NAMES, *CROSS_NAMES):
        assert renderer.statistic(name, 100.0)


def test_own_file_extends_ours(tmp_path):
    renderer = Renderer(own(tmp_path, "extends: default\nitem: 'Ware {{ title }}'\nverbs:\n  buy: 'kaufte'\n"))
    assert renderer.item({"title": "Seife"}) == "Ware Seife"
    assert renderer.event({"verb": "buy", "item": "Seife"})[0] == "kaufte"
    assert renderer.event({"verb": "search", "query": "Seife"})[0] == "searched"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: default\nitm: x\n", r"line 2, key 'itm': unknown key; did you mean item"),
        ("extends: defalt\n", "did you mean default"),
        ("item: '{{ title }}'\n", "add `extends: default`"),
        ("extends: default\nitem: [a, '{{ b | lef }}']\n", r"line 2, key 'item\[1\]': unknown filter 'lef'"),
        ("extends: default\nverbs: [buy]\n", r"line 2, key 'verbs': got \['buy'\], expected a mapping"),
        ("extends: default\nverbs:\n  buy: 7\n", r"line 3, key 'verbs.buy': got 7, expected a phrase"),
        ("extends: default\nstatistics:\n  x: {band: {0: a}}\n", "unknown key; did you mean bands"),
        ("extends: default\nstatistics:\n  x: {bands: [a]}\n", "expected a mapping from bound to word"),
        ("extends: default\ntime:\n  units: {day: [a day]}\n", "key 'time.units': expected"),
        ("extends: default\ntime:\n  agoo: x\n", "key 'time.agoo': unknown key; did you mean ago"),
        ("extends: default\ncalendar:\n  seasons: [wet, dry]\n", "expected a list of 4 names"),
    ],
)  # fmt: skip
def test_bad_templates_say_where(tmp_path, text, message):
    with pytest.raises(TemplateError, match=message):
        Renderer(own(tmp_path, text))


def test_a_file_that_extends_itself_is_refused(tmp_path):
    path = own(tmp_path, f"extends: {tmp_path / 'own.yaml'}\n")
    with pytest.raises(TemplateError, match="leads back"):
        Renderer(path)
