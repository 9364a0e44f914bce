"""What goes over the wire, field by field, with bounds and examples. Knows no recommender and no status code."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MAX_EVENTS, MAX_CANDIDATES, MAX_ITEMS, MAX_TEXTS, MAX_TURNS = 10_000, 2_000, 1_000, 64, 500
MAX_DEADLINE_MS = 60_000

Text = Annotated[str, StringConstraints(max_length=20_000)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# JSON has one kind of number: 10.0 is as whole as 10.
WHOLE = BeforeValidator(lambda it: int(it) if isinstance(it, float) and it % 1 == 0 else it)
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Value = bool | Whole | Finite | Text | None
Fields = Annotated[dict[Annotated[str, StringConstraints(max_length=100)], Value | list[Value]], Field(max_length=100)]


class Wire(BaseModel):
    """Whatever is sent: a field that nobody knows is a mistake, and so is one of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EventIn(Wire):
    """Something that the user did."""

    item: Key | Fields | None = Field(None, description="An id, a title, or an item's fields, for one nobody knows.")
    title: Text | None = Field(None, description="Short for an item that is known by its title alone.")
    query: Text | None = Field(None, description="What the user searched for.")
    verb: Annotated[str, StringConstraints(max_length=100)] | None = Field(None, examples=["buy"])
    time: Annotated[Finite, Field(ge=-(2**40), le=2**40)] | None = Field(None, description="Unix seconds.")
    value: Finite | None = Field(None, description="Such as a number of stars.")


Event = Text | EventIn
History = Text | Annotated[list[Event], Field(max_length=MAX_EVENTS)]
HISTORY = Field(
    "",
    description="What the user did, oldest first: titles separated by `;`, or a list of titles, item ids and events.",
    examples=[["red shirt", {"item": "g07", "verb": "buy", "time": 1700000000}, {"query": "warm shoes"}]],
)
Item = Key | Fields
Deadline = Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS), WHOLE]


class Timed(Wire):
    """A request that may say how long it can wait, and which of the runs at work it means."""

    deadline_ms: Deadline | None = Field(None, description="Milliseconds after which nobody waits any more.")
    options: Fields | None = Field(None, description="Choices that the server offers, such as `depth` or `run`.")


class Listed(Timed):
    """A request for a list of the catalogue's items."""

    history: History = HISTORY
    k: Annotated[int, Field(ge=1, le=1000), WHOLE] = Field(10, description="How many items.")
    exclude_history: bool = Field(True, description="Whether what the history holds is left out.")
    allow: Annotated[list[Key], Field(max_length=MAX_CANDIDATES)] | None = Field(None, description="No other items.")
    block: Annotated[list[Key], Field(max_length=MAX_CANDIDATES)] | None = Field(None, description="Never these.")


class RecommendIn(Listed):
    """Ask for recommendations."""

    context: Fields | None = Field(None, description="For a run that tells scenes apart: `time`, `place`, ...")
    diversity: float = Field(0.0, ge=0, le=1, description="How much unlikeness of the items weighs (MMR).")
    explain: bool = Field(False, description="Whether the best item comes with a reason.")


class RetrieveIn(Listed):
    """Ask for what is nearest in the catalogue, without a ranker."""

    k: Annotated[int, Field(ge=1, le=1000), WHOLE] = Field(100, description="How many items.")


class RankIn(Timed):
    """Ask for an order of candidates; one that comes twice is ranked once."""

    history: History = HISTORY
    candidates: Annotated[list[Item], Field(min_length=1, max_length=MAX_CANDIDATES)] = Field(
        description="Ids, titles, or fields of items that nobody has sold yet.",
        examples=[["g01", "blue lamp", {"title": "yellow teapot", "category": "kitchen"}]],
    )
    context: Fields | None = None


class ScoreIn(Timed):
    """Ask how likely events in words are."""

    text: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] = Field(
        examples=[["bought a red lamp", "bought a blue lamp"]]
    )
    history: History = HISTORY


Decoding = Annotated[Fields, Field(description="How to write: `strategy`, `temperature`, `max_new_tokens`, ...")]


class ExplainIn(Timed):
    """Ask why an item suits a user."""

    history: History = HISTORY
    item: Item = Field(examples=["g01"])
    decoding: Decoding = Field(default_factory=dict)


class CreateIn(Timed):
    """Ask for something that does not exist yet."""

    history: History | Annotated[list[list[Event]], Field(max_length=100)] = HISTORY
    kind: Annotated[str, StringConstraints(max_length=100)] = Field("title", examples=["title", "query"])
    n: Annotated[int, Field(ge=1, le=16), WHOLE] = Field(1, description="How many different ones at most.")
    item: Item | None = Field(None, description="What it is about, for a kind that is about an item.")
    apart: float = Field(0.0, ge=0, le=1, description="Least share of their words that two do not have in common.")
    decoding: Decoding = Field(default_factory=dict)


class TurnIn(Wire):
    """What one of the two said."""

    text: Text
    speaker: Literal["USER", "SYSTEM"] | None = None
    items: Annotated[list[Key], Field(max_length=100)] | None = None


class Streamed(Timed):
    """A request whose answer can come as it is written."""

    stream: bool = Field(False, description="Whether pieces come as server-sent events, and at the end the answer.")
    decoding: Decoding = Field(default_factory=dict)


class ChatIn(Streamed):
    """Say what comes next in a dialogue; nothing is kept between two calls."""

    turns: Annotated[list[Text | TurnIn], Field(max_length=MAX_TURNS)] = Field(
        examples=[["Hi, I liked the red shirt. Is there something warmer?"]]
    )


class GenerateIn(Streamed):
    """Fill the blanks of a text, or go on with it."""

    text: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] = Field(
        examples=["now chooses a product of category [MASK] named [MASK]"]
    )
    source: Text = Field("", description="What is known, in words.")


class ItemFields(Wire):
    """Whatever is known of an item."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[Annotated[str, StringConstraints(max_length=100)], Value | list[Value]] = Field(init=False)
    title: Annotated[Text, StringConstraints(min_length=1, pattern=r"\S")] = Field(examples=["yellow teapot"])


class ItemIn(ItemFields):
    """An item of the catalogue."""

    id: Key = Field(examples=["teapot-7"])


class ItemsIn(Wire):
    """Items that are new."""

    items: Annotated[list[ItemIn], Field(min_length=1, max_length=MAX_ITEMS)]


class ItemOut(BaseModel):
    """An item and its score; higher is better, comparable within one answer only."""

    model_config = ConfigDict(extra="allow")
    id: str
    title: str
    score: float | None = None


class Made(BaseModel):
    """What every answer says of itself."""

    model_config = ConfigDict(extra="allow")
    rung: str = Field("full", description="The step of the ladder that made it; under load others than the first.")
    version: str = Field("", description="Of the models.")
    trace: dict[str, Any] = Field(default_factory=dict, description="Stage -> milliseconds in it and before it.")


class ItemsOut(Made):
    """A list of items, best first."""

    items: list[ItemOut]


class ScoresOut(Made):
    """One log-likelihood a text, in nats."""

    scores: list[float]


class ExplanationOut(Made):
    """A reason, and what it rests on."""

    text: str
    complete: bool = True


class CreationsOut(Made):
    """What was made, the likeliest first."""

    created: list[dict[str, Any]]


class ReplyOut(Made):
    """What the system says, and the items that it names."""

    text: str
    items: list[ItemOut] = Field(default_factory=list)


class TextsOut(Made):
    """Texts with their blanks filled."""

    texts: list[dict[str, Any]]


class CatalogueOut(BaseModel):
    """How many items are on offer."""

    items: int


class Fault(BaseModel):
    """What is wrong."""

    type: str = Field(description="A word for programs.", examples=["request"])
    message: str = Field(description="A sentence for people: got, expected, do this.")
    fields: list[dict[str, Any]] = Field(default_factory=list, description="Which fields, and what about each.")


class FaultOut(BaseModel):
    """The answer to whatever went wrong."""

    error: Fault
