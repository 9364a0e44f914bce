"""The page's widgets, and what happens when they are touched. Knows the executor's Protocol; draws nothing itself."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from m6rec.api import Recommender
from m6rec.errors import M6RecError
from m6rec.serving.executors.base import Executor
from m6rec.serving.web.page import view
from m6rec.serving.web.page.choices import Choices
from m6rec.serving.web.page.prompt import prompt_of
from m6rec.serving.web.page.written import examples, line_of, read_lines, titles

STYLE = Path(__file__).with_name("style.css")
# So many items fit into a box that one can search in.
MOST_TITLES = 5_000
SHOWN, DEADLINE_MS = 12, 60_000
HELP = "One event a line, oldest first: a title or id, or `search: words`"
_FONT = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]


class Page:
    """One visitor's view of a server.

    Args:
        recommender: that is served.
        executor: that serves it.
    """

    def __init__(self, recommender: Recommender, executor: Executor) -> None:
        self.recommender, self.executor = recommender, executor
        self.choices = Choices(recommender, executor)
        team = recommender.team
        self.retrieves = team.can_retrieve
        self.verbs = recommender.catalog.retrieval.verb_names if self.retrieves else ()
        self.examples = dict(examples(recommender)) if self.retrieves else {}
        self.kinds = [kind for kind in map(team.work, team.runs) if kind in CREATED]

    def build(self) -> gr.Blocks:
        """Return the page."""
        with gr.Blocks(title="m6rec", analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML(self._header)
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=280):
                    history, choice, count, asked = self._side()
                with gr.Column(scale=9, min_width=480), gr.Tabs() as tabs:
                    if self.retrieves:
                        self._recommend_tab(history, choice, count, asked, tabs)
                    if "chat" in self.executor.graph.kinds:
                        self._chat_tab()
                    if self.kinds:
                        self._create_tab(history)
                    if self.retrieves:
                        self._prompt_tab(history, choice)
        return blocks

    def _header(self) -> str:
        names = [f"{run.folder.name} · {self.recommender.team.work(run)}" for run in self.recommender.team.runs]
        return view.header(names, self.executor.graph.version, len(self.recommender.catalog))

    def _side(self) -> tuple[gr.Textbox, gr.Dropdown, gr.Slider, gr.Button]:
        first = next(iter(self.examples.values()), "")
        told = "; ".join([HELP, *(f"`{verb}: title`" for verb in self.verbs[:3])]) + "."
        history = gr.Textbox(first, lines=7, max_lines=14, label="History", info=told, elem_id="history")
        if self.examples:
            shown = gr.Dropdown(
                list(self.examples), label="Example", value=next(iter(self.examples)), elem_id="example"
            )
            shown.input(self.examples.get, shown, history, show_progress="hidden")
        if self.retrieves and (known := titles(self.recommender, MOST_TITLES)):
            added = gr.Dropdown(known, label="Add an item", value=None, num_choices_shown=50, elem_id="add")
            called = {key: title for title, key in known}
            added.input(lambda lines, key: (_joined(lines, called[key]), None), [history, added], [history, added])
        choice = gr.Dropdown(
            self.choices.names, value=self.choices.names[0], label="Answered by", elem_id="choice",
            visible=len(self.choices.names) > 1,
        )  # fmt: skip
        count = gr.Slider(3, SHOWN, 6, step=1, label="Items", elem_id="count", visible=self.retrieves)
        asked = gr.Button("Recommend", variant="primary", elem_id="recommend", visible=self.retrieves)
        return history, choice, count, asked

    def _recommend_tab(
        self, history: gr.Textbox, choice: gr.Dropdown, count: gr.Slider, asked: gr.Button, tabs: gr.Tabs
    ) -> None:
        with gr.Tab("Recommend", id="Recommend"):
            with gr.Row(equal_height=False):
                retrieved, ranked = gr.HTML(elem_id="retrieved"), gr.HTML(elem_id="ranked")
            times = gr.HTML(elem_id="times")
            with gr.Row(visible="explain" in self.executor.graph.kinds, elem_id="reasons"):
                chosen = gr.Dropdown([], label="Why is this recommended?", scale=5, elem_id="explained")
                why = gr.Button("Explain", scale=1, min_width=110, elem_id="why")
            reason = gr.HTML(elem_id="reason")
        outputs = [retrieved, ranked, times, chosen, reason]
        asked.click(lambda: gr.Tabs(selected="Recommend"), None, tabs, show_progress="hidden")
        gr.on([asked.click, choice.select], self.recommend, [history, choice, count], outputs)
        why.click(self.explain, [history, chosen], reason)

    async def recommend(self, lines: str, choice: str, count: float) -> tuple[Any, ...]:
        """Show what is retrieved, what the ranker makes of it, and where the time went."""
        asked = {"history": read_lines(lines, self.verbs), "k": int(count)}
        try:
            recommender, executor = await self.choices.get(choice)
            found = await executor.submit({**asked, "k": 50}, kind="retrieve", deadline_ms=DEADLINE_MS)
            answer = await executor.submit(asked, kind="recommend", deadline_ms=DEADLINE_MS)
        except M6RecError as error:
            return view.notice(str(error)), "", "", gr.update(choices=[], value=None), ""
        details = self._details([*found["items"][: int(count)], *answer["items"]])
        before = [item["id"] for item in found["items"]]
        left = view.items(found["items"][: int(count)], "Retrieved from the whole catalogue", details=details)
        right = view.items(answer["items"], "In the ranker's order", before, details) if recommender.ranker else ""
        names = [(item["title"], item["id"]) for item in answer["items"]]
        update = gr.update(choices=names, value=names[0][1] if names else None)
        return left, right, view.timeline(answer), update, ""

    def _details(self, found: list[dict[str, Any]]) -> dict[str, str]:
        """Return a second line for each item: brand and category, or its id."""
        if not self.retrieves:
            return {}
        catalogue = self.recommender.catalog.retrieval.catalogue
        lines = {}
        for key in {item["id"] for item in found}:
            place = catalogue.find(key)
            record = {} if place is None else catalogue.records[place]
            lines[key] = " · ".join(str(record[name]) for name in ("brand", "category") if record.get(name)) or key
        return lines

    async def explain(self, lines: str, item: str | None) -> str:
        """Say why an item suits, and what that rests on."""
        events = read_lines(lines, self.verbs)
        if not item:
            return view.notice("Ask for recommendations first, then choose one of them.")
        try:
            asked = {"history": events, "item": item}
            answer = await self.executor.submit(asked, kind="explain", deadline_ms=DEADLINE_MS)
        except M6RecError as error:
            return view.notice(str(error))
        return view.reason(answer, [line_of(event) for event in events]) + view.timeline(answer)

    def _chat_tab(self) -> None:
        with gr.Tab("Chat", id="Chat"):
            dialogue = gr.Chatbot(
                height=420, show_label=False, layout="bubble", elem_id="dialogue", buttons=[], feedback_options=None,
                render_markdown=False, placeholder="Say what you are looking for; replies name items of the catalogue.",
            )  # fmt: skip
            said = gr.Textbox(
                placeholder="Something like the last one, but shorter?",
                show_label=False,
                submit_btn=True,
                elem_id="said",
            )
            named, again = (
                gr.HTML(elem_id="named"),
                gr.Button("New dialogue", size="sm", min_width=140, elem_id="again"),
            )
            turns = gr.State([])  # a child of the tab: one beside it would be counted as another tab
        said.submit(self.chat, [said, turns], [said, turns, dialogue, named])
        again.click(lambda: ([], [], ""), None, [turns, dialogue, named])

    async def chat(self, said: str, turns: list[dict[str, Any]]) -> AsyncIterator[tuple[Any, ...]]:
        """Show a reply as it is written, and at the end the items that it names."""
        if not said.strip():
            yield "", turns, _bubbles(turns), ""
            return
        turns, text = [*turns, {"speaker": "USER", "text": said}], ""
        yield "", turns, _bubbles(turns, "…"), ""
        try:
            async for piece in self.executor.stream({"turns": turns}, kind="chat", deadline_ms=DEADLINE_MS):
                if isinstance(piece, Mapping):
                    reply = {
                        "speaker": "SYSTEM",
                        "text": piece["text"],
                        "items": [each["id"] for each in piece["items"]],
                    }
                    turns = [*turns, reply]
                    shown = view.items(piece["items"], "Named in the reply", details=self._details(piece["items"]))
                    yield "", turns, _bubbles(turns), (shown if piece["items"] else "") + view.timeline(piece)
                else:
                    text += piece
                    yield "", turns, _bubbles(turns, text.lstrip()), ""
        except M6RecError as error:
            yield "", turns, _bubbles(turns), view.notice(str(error))

    def _create_tab(self, history: gr.Textbox) -> None:
        with gr.Tab("Create", id="Create"):
            with gr.Row(equal_height=False, elem_id="making"):
                kind = gr.Radio(self.kinds, value=self.kinds[0], label="What", elem_id="kind", scale=3)
                count = gr.Slider(1, 6, 3, step=1, label="How many", scale=2)
                asked = gr.Button("Create", variant="primary", elem_id="create", scale=1)
            about = gr.Textbox(
                label="About the item",
                info="For a description: an id or a title.",
                visible=ABOUT & {*self.kinds} != set(),
            )
            made = gr.HTML(elem_id="made")
        asked.click(self.create, [history, kind, count, about], made)

    async def create(self, lines: str, kind: str, count: float, about: str | None) -> str:
        """Show things that do not exist yet."""
        asked: dict[str, Any] = {"history": read_lines(lines, self.verbs), "kind": kind, "n": int(count)}
        if about:
            asked["item"] = about
        try:
            answer = await self.executor.submit(asked, kind="create", deadline_ms=DEADLINE_MS)
        except M6RecError as error:
            return view.notice(str(error))
        return view.creations(answer["created"]) + view.timeline(answer)

    def _prompt_tab(self, history: gr.Textbox, choice: gr.Dropdown) -> None:
        with gr.Tab("Prompt", id="Prompt") as tab:
            shown = gr.HTML(elem_id="prompt")
        tab.select(self.prompt, [history, choice], shown)

    async def prompt(self, lines: str, choice: str) -> str:
        """Show what the model reads for a history and the best candidate, and which of it is kept already."""
        events = read_lines(lines, self.verbs)
        try:
            recommender, executor = await self.choices.get(choice)
            answer = await executor.submit({"history": events, "k": 1}, kind="retrieve", deadline_ms=DEADLINE_MS)
            best = answer["items"][0]["id"] if answer["items"] else ""
            caption = "What the ranker reads" if recommender.ranker else "What the retrieval run reads, event by event"
            return view.prompt(prompt_of(recommender, events, best), caption)
        except M6RecError as error:
            return view.notice(str(error))


CREATED, ABOUT = ("title", "query", "description"), {"description"}


def _joined(lines: str, title: str) -> str:
    return f"{lines.rstrip()}\n{title}".strip()


def _bubbles(turns: list[dict[str, Any]], writing: str = "") -> list[dict[str, str]]:
    roles = {"USER": "user", "SYSTEM": "assistant"}
    shown = [{"role": roles[turn["speaker"]], "content": turn["text"]} for turn in turns]
    return [*shown, {"role": "assistant", "content": writing}] if writing else shown


def theme() -> gr.themes.Base:
    """Return colours and fonts that need nothing from anywhere."""
    light = ("#eef6f3", "#e5f1ed", "#c5dfd6", "#98c5b7", "#65a592")
    dark = ("#1f6f5c", "#1b6251", "#185a4a", "#124538", "#0d3329", "#08221b")
    green = gr.themes.Color(*light, *dark, name="m6rec")
    made = gr.themes.Base(
        primary_hue=green, secondary_hue=green, neutral_hue="stone", font=_FONT, font_mono=["ui-monospace", "monospace"]
    )
    fill = {"button_primary_background_fill": "*primary_500", "button_primary_background_fill_hover": "*primary_700"}
    styled: gr.themes.Base = made.set(**fill)
    return styled
