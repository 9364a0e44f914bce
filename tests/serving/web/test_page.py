"""The page in a real browser, and what it draws."""

import asyncio
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from m6rec.api import Recommender, load
from m6rec.compressors.exit_config import ExitConfig
from m6rec.compressors.exits import ExitingBackbone
from m6rec.serving.web.page import view
from m6rec.serving.web.page.choices import Choices
from m6rec.serving.web.page.prompt import Piece, prompt_of
from m6rec.serving.web.page.written import examples, line_of, read_lines, titles
from tests.serving.fake_executor import FakeExecutor

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
ITEMS = [{"id": "g01", "title": "<b>red</b> ${1+1}", "score": 2.0}, {"id": "g02", "title": "blue", "score": 1.0}]
HISTORY = "red shirt\nsearch: warm shoes\nbuy: blue lamp"


class TestWritten:
    def test_lines_are_events_and_back(self):
        events = read_lines(f"\n {HISTORY}\nThe Road: Home\n", ["buy", "view"])
        assert events == ["red shirt", {"query": "warm shoes"}, {"item": "blue lamp", "verb": "buy"}, "The Road: Home"]
        assert "\n".join(map(line_of, events)) == f"{HISTORY}\nThe Road: Home"

    def test_examples_are_of_the_catalogue_and_of_nobody(self, retrieval_run):
        recommender = load(retrieval_run)
        found = examples(recommender, count=3, events=4)
        known = {title for title, _ in titles(recommender, 100)}
        assert len(known) == 36
        assert len({name for name, _ in found}) == 3
        assert all(set(lines.split("\n")) <= known for _, lines in found)
        assert titles(recommender, 35) == []


class TestView:
    def test_what_people_wrote_is_escaped(self):
        hostile = "<script>alert(1)</script>"
        reason = {"text": hostile, "item": {"title": hostile}, "evidence": {"attributes": [hostile], "events": [0]}}
        drawn = [
            view.items([{**ITEMS[0], "title": hostile}], "x", details={"g01": hostile}),
            view.reason({**reason, "drops": [0.5]}, [hostile]),
            view.prompt([Piece(hostile, 3, 0, True)], "x"),
            view.creations([{"answers": {"title": hostile}, "log_prob": -1.0}]),
            view.notice(hostile),
            view.timeline({"trace": {hostile: {"ms": 1.0}}, "rung": hostile}),
            view.header([hostile], "v", 3),
        ]
        for html in drawn:
            assert "<script" not in html
            assert "&lt;script" in html

    def test_a_card_says_how_far_it_moved(self):
        html = view.items(ITEMS, "ranked", before=["g02", "g01"])
        assert html.index("▲ 1") < html.index("▼ 1")

    def test_stages_stand_one_behind_the_other(self):
        trace = {"parse": {}, "encode": {"ms": 30.0, "wait_ms": 10.0}, "rank": {"ms": 60.0, "segments": 9}}
        html = view.timeline({"trace": trace, "rung": "full"})
        assert 'class="work" style="left:10.00%;width:30.00%"' in html
        assert 'class="work" style="left:40.00%;width:60.00%"' in html
        assert "0 of 9 segments" in html
        assert "no model ran" in view.timeline({"trace": {"parse": {}}, "rung": "cache"})

    def test_a_prompt_says_what_of_it_is_kept(self):
        html = view.prompt([Piece("a", 3, 0, True), Piece("b", 2, 1, False)], "x")
        assert "5 tokens, 3 of them kept" in html
        assert "the candidate" in html
        assert "keeps none" in view.prompt([Piece("a", 3, 0, None)], "x")

    def test_an_event_that_speaks_against_an_item_says_so(self):
        reason = {"text": "red", "evidence": {"events": [0, 1]}, "drops": [0.5, -0.25]}
        html = view.reason(reason, ["red shirt", "blue lamp"])
        assert "falls by 0.50" in html
        assert "rises by 0.25" in html


class TestPrompt:
    def test_known_items_are_kept_and_strangers_read(self, retrieval_run):
        pieces = prompt_of(load(retrieval_run), ["red shirt", "a thing nobody knows"], "g01")
        assert [piece.cached for piece in pieces] == [True, False]
        assert "red shirt" in pieces[0].text

    def test_a_ranker_reads_the_trunk_and_then_the_candidate(self, retrieval_run, ranking_run):
        pieces = prompt_of(load(retrieval_run, ranking_run), ["red shirt"], "g01")
        assert [piece.branch for piece in pieces] == sorted(piece.branch for piece in pieces)
        trunk = "".join(piece.text for piece in pieces if not piece.branch)
        assert "red shirt" in trunk
        assert "red shoes" in "".join(piece.text for piece in pieces if piece.branch)
        assert "red shoes" not in trunk


class TestChoices:
    def test_every_depth_is_one_and_the_servers_own_stays_as_it_is(self, retrieval_run, ranking_run):
        recommender = load(retrieval_run, ranking_run)
        retriever, ranker = recommender.team.runs
        torch.manual_seed(0)
        exiting = replace(ranker, backbone=ExitingBackbone(ranker.backbone, ExitConfig()).eval())
        served = Recommender([retriever, exiting])
        choices = Choices(served, FakeExecutor())
        names = [name.rpartition(" · ")[2] for name in choices.names]
        assert names == ["3 of 3 layers", "1 of 3 layers", "2 of 3 layers"]

        async def ask():
            other, executor = await choices.get(choices.names[1])
            assert (await choices.get(choices.names[1]))[1] is executor
            assert other.catalog is served.catalog
            answer = await executor.submit({"history": "red shirt", "k": 5}, deadline_ms=60_000)
            await choices.close()
            return answer["items"]

        found = asyncio.run(ask())
        assert exiting.backbone.depth == 3
        exiting.backbone.set(ExitConfig(depth=1))
        expected = {item.id: item.score for item in served.rank("red shirt", [item["id"] for item in found])}
        assert {item["id"]: pytest.approx(item["score"], abs=1e-5) for item in found} == expected

    def test_without_a_ranker_there_is_one(self, retrieval_run):
        assert Choices(load(retrieval_run), FakeExecutor()).names == ["retrieval alone"]


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium here")
class TestInABrowser:
    @pytest.fixture(scope="class")
    def browser(self):
        playwright = pytest.importorskip("playwright.sync_api")
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
            yield browser
            browser.close()

    @pytest.fixture(scope="class")
    def address(self, shop_server):
        if find_spec("gradio") is None:
            pytest.skip("the extra for the page is not installed")
        return shop_server

    def test_a_visit(self, browser, address):
        page = browser.new_page()
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(error))
        page.goto(address)
        page.fill("#history textarea", "red shirt\nbuy: blue lamp")
        page.click("#recommend")
        page.wait_for_selector("#ranked .card")
        assert page.locator("#retrieved .card").count() == page.locator("#ranked .card").count() == 6
        assert page.locator("#times .stage").count() >= 3
        page.get_by_role("tab", name="Prompt").click()
        page.wait_for_selector("#prompt .piece.branch >> nth=1")
        assert "red shirt" in page.inner_text("#prompt .prompt")
        page.fill("#history textarea", "red shirt\nsearch:")
        page.get_by_role("tab", name="Recommend").click()
        assert page.get_by_role("tab").count() == 2
        assert not failed
        assert all(url.startswith((address, "data:", "blob:")) for url in asked)
        page.close()

    def test_an_item_with_hostile_words_is_shown_as_it_is(self, browser, address):
        import httpx

        hostile = "red shirt <img src=x onerror=alert(1)> ${1+1} {{7*7}}"
        item = {"id": "n1", "title": hostile, "brand": "red", "category": "shirts"}
        assert httpx.post(f"{address}/v1/items", json={"items": [item]}).status_code == 201
        page = browser.new_page()
        page.on("dialog", lambda _: pytest.fail("a title was run as a program"))
        page.goto(address)
        page.fill("#history textarea", "a red shirt <img src=x onerror=alert(1)>")
        page.locator("#count input").first.fill("12")
        page.click("#recommend")
        page.wait_for_selector("#retrieved .card")
        assert httpx.delete(f"{address}/v1/items/n1").status_code == 200
        assert page.locator("#retrieved img").count() == 0
        shown = page.locator(".card .title").all_inner_texts()
        assert hostile in shown
        page.close()
