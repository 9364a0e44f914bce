"""What the model sees: a user's prompt, segment by segment. Knows no weights."""

from rich.table import Table

from m6rec.backbones.resolve import resolve_backbone
from m6rec.data.store import Dataset
from m6rec.errors import DataError
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.show import show
from m6rec.text.tokenize import TextTokenizer


def prompt_table(
    data: str, task: str, user: str, candidates: list[str], backbone: str, domain: str | None = None
) -> Table:
    """Return the prompt of one user as a table: segment, role, block, branch, tokens, text.

    Args:
        data: dataset folder; the history shown is what may be known before the test period.
        task: prompt file.
        user: the log's own id, empty = the first user.
        candidates: the log's own item ids; empty = the user's last known item.
        backbone: whose tokenizer counts.
        domain: data template, ``None`` = the dataset's.

    Raises:
        DataError: an unknown user or item.
    """
    dataset = Dataset.open(data)
    renderer, prompt = Renderer(domain or dataset.manifest.domain), Prompt(task)
    tokenizer = TextTokenizer(resolve_backbone(backbone).tokenizer)
    number = _number(dataset.users["key"][:], user, "user") if user else 0
    history = dataset.histories().before("test")
    owned = history.of(number)
    rows = history.rows[owned] if history.rows is not None else range(owned.start, owned.stop)
    events = [dataset.event_record(int(row)) for row in rows]
    keys = dataset.items["key"][:]
    places = [_number(keys, key, "item") for key in candidates]
    if not places and prompt.branch:
        met = history.items[owned]
        places = [int(met[met >= 0][-1])] if (met >= 0).any() else [0]
    shown = [Candidate(item=dataset.item_record(place)) for place in places]
    layout = prompt.layout(renderer, UserText(dataset.user_record(number), events=events), shown)
    return show(layout, tokenizer, prompt.budget_tokens)


def _number(keys: list[str], key: str, what: str) -> int:
    try:
        return keys.index(key)
    except ValueError:
        raise DataError(f"got {what} {key!r}, expected one of this dataset, e.g. {keys[0]!r}") from None
