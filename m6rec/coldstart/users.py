"""Cold users as a task: what will a user who was never seen think of items, after no, one, five or twenty events?

Item and user features come from the dataset's attributes and the frozen backbone's text states; the backbone itself is
not trained. Knows no loop, no report and no file but its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.coldstart.conditioned import ConditionedReader
from m6rec.coldstart.draws import Draw, Draws
from m6rec.coldstart.episodes import Episodes, Part, Protocol
from m6rec.coldstart.events import ColdBatch, Events, ItemTable, Padder, Rates, first
from m6rec.coldstart.factors import Factors
from m6rec.coldstart.known import Known, catalogue_states
from m6rec.coldstart.meta import TwoStage, TwoStageConfig
from m6rec.coldstart.modulation import Modulated, ModulationConfig, Structure
from m6rec.coldstart.search import Found, search, squared_error
from m6rec.coldstart.support import curve, named
from m6rec.coldstart.traits import Attributes
from m6rec.config import plain
from m6rec.data.histories import Split
from m6rec.tasks.base import Loss, Material, Task, built_over
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.heads import load_heads, read_names, save_heads
from m6rec.text.prompt import UserText
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer

USERS_AT_ONCE = 64


@dataclass(frozen=True)
class ColdUsersConfig:
    """Settings of the cold-user task; all change results."""

    method: Literal["two-stage", "modulation"] = "two-stage"
    """Two-stage meta-learning (an inner loop a user), or a predictor that the user's events modulate (ColdNAS)."""
    threshold: float | None = None
    """Rating from which an event is a yes; null = labels come from impressions, or from sampled negatives where the log
    has none."""
    num_negatives: int = 4
    """Random unmet items beside each event, where the log has no labels."""
    protocol: Protocol = field(default_factory=Protocol)
    """How users are divided and their events cut."""
    draws: int = 8
    """Supports that are drawn from each user that is learnt from."""
    queries: int = 32
    """Most queries of a draw."""
    text_width: int = 32
    """Whitened numbers of each layer of an item's text."""
    attributes: int = 64
    """Most attribute columns of items, and of users."""
    dim: int = 8
    """Directions of taste."""
    two_stage: TwoStageConfig = field(default_factory=TwoStageConfig)
    """Settings of that method."""
    modulation: ModulationConfig = field(default_factory=ModulationConfig)
    """Settings of that method."""


class ColdUsers(Task):
    """What a user thinks of items, from few judged ones.

    Source: ColdNAS (2306.03387); two-stage meta-learning (1912.04108).
    Differs: see :mod:`m6rec.coldstart.modulation` and :mod:`m6rec.coldstart.meta`; both add to a closed form.
    """

    name = "cold-users"
    Config = ColdUsersConfig
    calibration: Tensor

    def __init__(
        self,
        config: ColdUsersConfig,
        catalogue: Catalogue,
        renderer: Renderer,
        backbone: Backbone,
        items: Attributes,
        users: Attributes,
    ) -> None:
        super().__init__()
        self.config, self.catalogue, self.renderer = config, catalogue, renderer
        self.tokenizer = TextTokenizer(backbone.tokenizer)
        ladder = config.method == "modulation" and config.modulation.predictor == "ladder"
        layers = min(config.modulation.positions, backbone.num_layers) if ladder else 1
        self.known = Known(len(catalogue), backbone.hidden_size, layers, config.text_width, items, users, config.dim)
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        self.found: Found | None = None
        self.predictor: TwoStage | Modulated | ConditionedReader | None = None
        self._material: Material | None = None
        self._users: dict[Part, Episodes] = {}
        self._padders: dict[Part, Padder] = {}
        self._draws: Draws | None = None
        self._words: list[list[int]] | None = None
        # What two-stage meta-learning starts from; a loaded run has trained on.
        self._pull = torch.ones(config.dim)

    @classmethod
    def build(cls, config: ColdUsersConfig, material: Material, backbone: Backbone) -> "ColdUsers":
        """Return a new task over a dataset; reads the catalogue's texts once, and searches where it is asked to.

        Raises:
            DataError: too few users with enough judged items.
        """
        torch.manual_seed(material.seed)
        dataset = material.dataset
        catalogue = Catalogue.of(dataset, material.renderer, dataset.histories().before("train"))
        profiles = [dataset.user_record(user) for user in range(dataset.num_users)]
        columns = [Attributes.of(records, config.attributes) for records in (catalogue.records, profiles)]
        task = cls(config, catalogue, material.renderer, backbone, *columns)
        task._material = material
        episodes = Episodes.of(dataset, config.threshold, config.num_negatives, material.seed)
        task._users = config.protocol.divide(episodes, material.seed)
        layers = task.known.reader.num_layers
        states = catalogue_states(backbone, task.tokenizer, catalogue.texts, layers, material.cache)
        task.known.read(states, catalogue.records)
        task._judge()
        task.predictor = task._made(backbone)
        return task

    def _judge(self) -> None:
        """Fit the closed forms that everything starts from to the users that are learnt from."""
        train, table = self._users["train"], self.known.table
        rates = Rates.of(train, table.attributes.numpy())
        features = table.features(torch.arange(len(self.catalogue))).numpy().astype(np.float64)
        left = rates.left(train)
        factors = Factors.fit(train.rows, train.items, left, len(train), features, self.config.dim, self.material.seed)
        self.known.judge(rates, factors)
        self._pull = torch.from_numpy(factors.pull).float()
        self._padders = {part: Padder(of, rates, factors, part == "train") for part, of in self._users.items()}

    @property
    def material(self) -> Material:
        """What the task is trained on."""
        return built_over(self._material)

    @property
    def trains_backbone(self) -> bool:
        """Whether the texts are read at every step; else they are read once, and no loss reaches the backbone."""
        return isinstance(self.predictor, ConditionedReader)

    def users(self, part: Part) -> Episodes:
        """Return the users of a part."""
        built_over(self._material)
        return self._users[part]

    @property
    def _item_width(self) -> int:
        return self.known.table.width + self.config.dim + 2

    @property
    def _reads(self) -> bool:
        return self.config.method == "modulation" and self.config.modulation.predictor == "lm"

    def _made(self, backbone: Backbone) -> TwoStage | Modulated | ConditionedReader:
        if self._reads:
            return ConditionedReader(self.config.modulation, self._item_width, backbone)
        return self._predictor(self._structure())

    def _predict(self, backbone: Backbone, batch: ColdBatch, table: ItemTable, more: Sequence[str] = ()) -> Tensor:
        """Return what users think of what is asked; ``more`` are the words of items behind the catalogue's."""
        assert self.predictor is not None
        if not isinstance(self.predictor, ConditionedReader):
            return self.predictor(table, batch)
        if self._words is None:
            self._words = self.tokenizer.texts(self.catalogue.texts)
        return self.predictor(backbone, [*self._words, *self.tokenizer.texts(more)], table, batch)

    def _predictor(self, structure: Structure | None, soft: bool = False) -> TwoStage | Modulated:
        config, table, profile = self.config, self.known.table, len(self.known.users)
        if structure is None:
            return TwoStage(config.two_stage, table.width, profile, self._pull)
        layers = (table.texts.shape[1], table.texts.shape[2])
        return Modulated(config.modulation, structure, self._item_width, profile, layers, soft)

    def _structure(self) -> Structure | None:
        """Return the structure that the settings ask for; searched once, and kept in the cache."""
        config, modulation = self.config, self.config.modulation
        if config.method == "two-stage":
            return None
        middle = sorted(modulation.num_gates)[len(modulation.num_gates) // 2]
        rng = np.random.default_rng(self.material.seed)
        match modulation.structure:
            case "searched":
                self.found = self._search()
                return self.found.structure
            case "random":
                return Structure.random(modulation.positions, middle, rng)
            case "film":
                return Structure.film(modulation.positions)
            case "all":
                return Structure.everything(modulation.positions)
            case "none":
                return Structure.none(modulation.positions)

    def _search(self) -> Found:
        material = self.material
        path = material.cache / "structure.json"
        key = {"data": material.dataset.manifest.hash, "config": plain(self.config), "seed": material.seed}
        if path.is_file() and (kept := json.loads(path.read_text(encoding="utf-8")))["key"] == json.loads(
            json.dumps(key)
        ):
            return Found(Structure(tuple(map(tuple, kept["structure"]))), kept["gates"], kept["losses"])
        supernet = self._predictor(Structure.everything(self.config.modulation.positions), soft=True)
        assert isinstance(supernet, Modulated)
        valid = [batch for size in self.config.protocol.sizes() for batch in self.asked("valid", size)]
        found = search(supernet, self.known.table, self._shuffled, valid, self.config.modulation)
        kept = {"key": key, "structure": found.structure.gates, "gates": found.gates, "losses": found.losses}
        material.cache.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept), encoding="utf-8")
        return found

    def _shuffled(self, epoch: int) -> Iterator[ColdBatch]:
        draws = self.examples()
        order = np.random.default_rng([self.material.seed, epoch]).permutation(len(draws))
        for start in range(0, len(order), USERS_AT_ONCE):
            yield self.collate([draws[int(number)] for number in order[start : start + USERS_AT_ONCE]])

    def examples(self) -> Draws:
        """Return the training draws."""
        if self._draws is None:
            config, users = self.config, self.users("train")
            self._draws = Draws(users, config.protocol, config.draws, config.queries, self.material.seed)
        return self._draws

    def collate(self, examples: list[Draw]) -> ColdBatch:
        """Make one batch of users."""
        draws, users = self.examples(), self.users("train")
        supports, queries = zip(*map(draws.cut, examples), strict=True)
        padder = self._padders["train"]
        rows = users.users[[row for row, _ in examples]]
        return ColdBatch(padder(supports), padder(queries), self._profiles(rows))

    def asked(self, part: Part, size: int) -> Iterator[ColdBatch]:
        """Yield users of a part with so many known events, and all their queries."""
        users, padder, protocol = self.users(part), self._padders[part], self.config.protocol
        supports, queries = list(protocol.supports(users, size)), protocol.queries(users)
        for start in range(0, len(users), USERS_AT_ONCE):
            some = slice(start, start + USERS_AT_ONCE)
            support = first(padder.of(supports[some]), size)
            yield ColdBatch(support, padder.of(queries[some]), self._profiles(users.users[some]))

    def _profiles(self, users: NDArray[np.integer]) -> Tensor:
        return self.known.users([self.material.dataset.user_record(int(user)) for user in users])

    def loss(self, backbone: Backbone, batch: ColdBatch) -> Loss:
        """Return the mean squared error of the queries."""
        error = squared_error(self._predict(backbone, batch, self.known.table), batch)
        return Loss(error, float(batch.query.keep.sum()), {"mse": error.item()})

    @torch.no_grad()
    def predictions(self, backbone: Backbone, part: Part, size: int) -> NDArray[np.float32]:
        """Return ``[num_queries]`` what users of a part will say, in the log's own units, from ``size`` events each."""
        self.eval()
        mean, scale = self.known.units.tolist()
        device = self.calibration.device
        batches = (batch.to(device) for batch in self.asked(part, size))
        found = [self._predict(backbone, batch, self.known.table)[batch.query.keep] for batch in batches]
        return (torch.cat(found) * scale + mean).float().cpu().numpy()

    def measure(
        self, backbone: Backbone, split: Split, at_most: int | None = None, seed: int = 0
    ) -> dict[str, float] | None:
        """Return the curve over support sizes of users who were never learnt from (their number is small: all)."""
        part: Part = "test" if split == "test" else "valid"
        return named(curve(partial(self.predictions, backbone, part), self.users(part), self.config.protocol, seed))

    def finish(self, backbone: Backbone) -> None:
        """Fit probabilities of a yes to what validation users said, over all support sizes."""
        users, protocol = self.users("valid"), self.config.protocol
        labels = np.concatenate([users.labels[part] for part in protocol.queries(users)])
        scores = np.stack([self.predictions(backbone, "valid", size) for size in protocol.sizes()])
        self.calibration.copy_(_calibrated(scores, np.broadcast_to(labels, scores.shape)))

    @torch.no_grad()
    def rank(
        self, backbone: Backbone, user: UserText, items: Sequence[tuple[int | None, Mapping[str, Any]]]
    ) -> NDArray[np.float32]:
        """Return probabilities of a yes for candidates, adapted to the user's events.

        An event without a value counts as a yes. Items that the catalogue does not hold go by their words and fields;
        searches and other events without an item are passed over.

        Args:
            backbone: as in training.
            user: profile and events.
            items: each candidate's position in the catalogue (``None`` = a stranger) and fields.
        """
        if not items:
            return np.zeros(0, dtype=np.float32)
        self.eval()
        events = [event for event in user.events if isinstance(event.get("item"), Mapping)]
        records = [event["item"] for event in events]
        known = [(self.catalogue.find(str(record["key"])) if "key" in record else None, record) for record in records]
        table, places, more = self._with_strangers(backbone, [*known, *items])
        values = torch.tensor([self._value(event) for event in events])
        support = self._events(table, places[: len(known)], values)
        profile = self.known.users([user.profile]).to(self.calibration.device)
        batch = ColdBatch(support, self._events(table, places[len(known) :]), profile)
        mean, scale = self.known.units.tolist()
        score = self._predict(backbone, batch, table, more)[0].float() * scale + mean
        slope, shift = self.calibration
        probabilities: NDArray[np.float32] = torch.sigmoid(slope * score + shift).cpu().numpy()
        return probabilities

    def _with_strangers(
        self, backbone: Backbone, items: Sequence[tuple[int | None, Mapping[str, Any]]]
    ) -> tuple[ItemTable, list[int], list[str]]:
        """Return the table with unknown items behind the catalogue's, every item's place in it, and their words."""
        strangers = [record for place, record in items if place is None]
        table, size = self.known.table, len(self.known.texts)
        texts = [self.renderer.item(record) for record in strangers]
        if strangers:
            table = table.and_also(self.known.strangers(backbone, self.tokenizer, texts, strangers))
        numbers = iter(range(size, size + len(strangers)))
        return table, [next(numbers) if place is None else place for place, _ in items], texts

    def _value(self, event: Mapping[str, Any]) -> float:
        """Return an event's value in standard units; that of a yes where it has none."""
        mean, scale = self.known.units.tolist()
        yes = 1.0 if self.config.threshold is None else max(self.config.threshold, mean)
        value = event.get("value")
        return (float(yes if value is None or self.config.threshold is None else value) - mean) / scale

    def _events(self, table: ItemTable, places: Sequence[int], values: Tensor | None = None) -> Events:
        """Return one user's events on the run's device."""
        device, size = self.calibration.device, len(self.known.texts)
        where = torch.tensor([places or [0]], dtype=torch.long, device=device)
        known, inside = where < size, where.clamp(max=size - 1)
        return Events(
            places=where,
            base=self.known.base[inside] * known,
            counts=self.known.counts[inside] * known,
            taste=self.known.taste[inside].where(known[..., None], table.features(where) @ self.known.text_taste),
            values=torch.zeros(where.shape, device=device) if values is None or not places else values[None].to(device),
            keep=torch.full(where.shape, bool(places), device=device),
        )

    def save(self, folder: Path) -> None:
        """Write predictor, what is known of items, and the catalogue."""
        structure = self.predictor.structure.gates if isinstance(self.predictor, Modulated) else None
        save_heads(self, folder, {"attributes": self.known.names, "structure": structure})
        self.catalogue.save(folder / "catalogue")

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote into a task over the same dataset."""
        self._take(read_names(folder), backbone)
        load_heads(self, folder)

    @classmethod
    def load(cls, config: ColdUsersConfig, folder: Path, renderer: Renderer, backbone: Backbone) -> "ColdUsers":
        """Read what ``save`` wrote."""
        names = read_names(folder)
        columns = [Attributes(tuple(names["attributes"][of])) for of in ("items", "users")]
        task = cls(config, Catalogue.load(folder / "catalogue", encoded=False), renderer, backbone, *columns)
        task._take(names, backbone)
        load_heads(task, folder)
        return task

    def _take(self, names: Mapping[str, Any], backbone: Backbone) -> None:
        if self._reads:
            self.predictor = self._made(backbone)
        else:
            gates = names["structure"]
            self.predictor = self._predictor(None if gates is None else Structure(tuple(map(tuple, gates))))


def _calibrated(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> Tensor:
    """Return slope and shift of the logistic curve through ``labels``; the slope never turns an order round."""
    score, label = torch.from_numpy(scores).reshape(-1), torch.from_numpy(labels.copy()).reshape(-1)
    curve = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([curve], max_iter=50, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        # Some pull to slope one and the middle: labels may be all equal.
        missed = F.binary_cross_entropy_with_logits(curve[0].exp() * score + curve[1], label, reduction="sum")
        loss: Tensor = missed + curve.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return torch.stack([curve[0].exp(), curve[1]]).detach()
