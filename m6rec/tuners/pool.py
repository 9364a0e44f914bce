"""Many adapters on one backbone: every one has modules of its own around the same frozen weights.

So they live side by side: nothing is switched, nothing is waited for, and no adapter can touch another or the bare
backbone. This module knows no method; what made an adapter, and with which settings, stands in its folder.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.config import parse
from m6rec.errors import ConfigError, SharedWeightsError, TunerError, nearest
from m6rec.text.batch import TokenBatch
from m6rec.tuners import TUNERS
from m6rec.tuners.base import Tuner
from m6rec.tuners.files import CONTROL_FILE, read_adapter_card

Run = Callable[[Backbone, Tensor], Tensor]


def skeleton(backbone: Backbone) -> Backbone:
    """Return a backbone with modules of its own around the weights of ``backbone``.

    Every parameter and buffer is the same object in both, only the control tokens' rows are copied: a tuner may take
    the one apart and train what it adds, and the other does not change. It costs some hundred kilobytes, not a model.

    Raises:
        TunerError: ``backbone`` itself is being trained.
    """
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        raise TunerError("got a backbone that is being trained, expected a bare one to share; detach its tuner first")
    _ = backbone.fingerprint  # taken once, copied with the rest
    shared = [*backbone.parameters(), *backbone.buffers(), backbone.tokenizer]
    memo = {id(part): part for part in shared if part is not backbone.control}
    return copy.deepcopy(backbone, memo)


def find_adapter(folder: Path) -> Path:
    """Return where an adapter lies: in ``folder`` itself, or in the ``adapter/`` of a run.

    Raises:
        TunerError: there is none.
    """
    for place in (folder / "adapter", folder):
        if (place / CONTROL_FILE).is_file():
            return place
    raise TunerError(f"got {folder}, expected a folder that a tuner has saved ({CONTROL_FILE} in it), or a run folder")


def saved_tuner(folder: Path) -> Tuner:
    """Return a tuner as the adapter in ``folder`` was made by: same method, same settings.

    Raises:
        TunerError: no adapter there, a damaged one, or one of a method or settings that this version does not know.
    """
    card = read_adapter_card(folder)
    if card.method not in TUNERS:
        raise TunerError(
            f"got an adapter of the unknown tuner {card.method!r} in {folder}{nearest(card.method, TUNERS)}; update "
            "m6rec, or install the package that brings the tuner"
        )
    kind = TUNERS.load(card.method)
    try:
        tuner: Tuner = kind(parse(kind.Config, card.settings, "tuner"))
    except ConfigError as error:
        raise TunerError(
            f"got an adapter in {folder} with settings of another version: {error}; update m6rec"
        ) from error
    return tuner


def open_adapter(backbone: Backbone, folder: Path, tuner: Tuner | None = None) -> Backbone:
    """Return ``backbone`` under an adapter, for inference; ``backbone`` itself stays as it is.

    Args:
        backbone: bare; its weights are shared.
        folder: as a tuner saved it.
        tuner: an unattached one; default: as the folder says.

    Raises:
        TunerError: the adapter is damaged, or of another base model, method or setting.
        SharedWeightsError: the tuner changes the backbone's own weights.
    """
    tuner = saved_tuner(folder) if tuner is None else tuner
    tuned = tuner.attach(skeleton(backbone))
    shared = {id(parameter) for parameter in backbone.parameters()}
    if any(id(parameter) in shared for parameter in tuner.parameters().values()):
        backbone.requires_grad_(False)
        raise SharedWeightsError(
            f"got the adapter {folder}, which changes the pretrained weights themselves, expected one that adds to "
            "them, for others share them; open it on a backbone of its own"
        )
    tuner.load(folder)
    return tuned.requires_grad_(False).to(backbone.control.device).eval()


@dataclass(frozen=True)
class Adapter:
    """One adapter that a pool knows.

    Args:
        name: what requests call it.
        folder: where it was saved.
        method: shelf name of its tuner.
        num_parameters: how many numbers it holds of its own.
        pinned: whether it is never evicted.
        resident: whether it is in memory now.
    """

    name: str
    folder: Path
    method: str
    num_parameters: int
    pinned: bool
    resident: bool


class AdapterPool:
    """Adapters that share one backbone in memory, asked for by name.

    At most ``capacity`` are resident. When one more is needed, the unpinned one that was asked for longest ago goes; it
    stays known and comes back from its folder when it is asked for again. All methods may be called from any thread:
    asking for a resident adapter never waits for another's loading, and a request that holds an adapter keeps it while
    it is evicted, replaced or unloaded.

    Args:
        backbone: bare; move it to its device first.
        capacity: most adapters in memory.
    """

    def __init__(self, backbone: Backbone, capacity: int = 16) -> None:
        if capacity < 1:
            raise TunerError(f"capacity: got {capacity}, expected 1 or more")
        self.backbone, self.capacity = backbone, capacity
        self._known: dict[str, Adapter] = {}
        self._resident: OrderedDict[str, Backbone] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()  # held for moments only
        self._changing = threading.RLock()  # one at a time: attaching seeds the global generator

    def load(self, name: str, folder: str | Path, *, pin: bool = False) -> Backbone:
        """Read an adapter under ``name``, in place of one that had it, and return the tuned backbone.

        Args:
            name: what requests will call it.
            folder: what a tuner saved, or a run.
            pin: never evict it.

        Raises:
            TunerError: it does not fit or is damaged, or all places are pinned; the pool is then as it was.
        """
        with self._changing:
            return self._read(name, find_adapter(Path(folder)), pin)

    def get(self, name: str) -> Backbone:
        """Return the backbone under the adapter ``name``; an evicted one is read again.

        Raises:
            TunerError: no such adapter, or it cannot be read again.
        """
        if (found := self._ask(name)) is not None:
            return found
        with self._changing:
            # Another thread may have brought it back meanwhile.
            found, known = self._ask(name), self._info(name)
            return self._read(name, known.folder, known.pinned) if found is None else found

    def unload(self, name: str) -> None:
        """Forget an adapter; its memory is free once no request holds it.

        Raises:
            TunerError: no such adapter.
        """
        with self._changing, self._lock:
            self._info(name)
            del self._known[name]
            self._resident.pop(name, None)

    def pin(self, name: str, pinned: bool = True) -> None:
        """Keep an adapter in memory whatever comes, or no longer.

        Raises:
            TunerError: no such adapter, or all places are pinned.
        """
        with self._changing:
            if pinned:
                self._check_room(name)
                self.get(name)
            with self._lock:
                self._known[name] = replace(self._info(name), pinned=pinned)

    def list(self) -> tuple[Adapter, ...]:
        """Return every adapter that the pool knows, by name."""
        with self._lock:
            return tuple(replace(known, resident=name in self._resident) for name, known in sorted(self._known.items()))

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def forward(self, batch: TokenBatch, adapters: Sequence[str | None]) -> Float[Tensor, "batch tokens hidden"]:
        """Return the normed states of a batch whose every row has an adapter of its own.

        Rows of one adapter run together, so a batch of one kind costs what it costs without a pool.

        Args:
            batch: any rows.
            adapters: one name a row; ``None`` = the bare backbone.

        Raises:
            TunerError: an unknown name, or not one a row.
        """
        return self._scatter(adapters, batch.size, lambda tuned, rows: tuned(batch.take(rows)))

    def logits(
        self, hidden: Float[Tensor, "batch *shape hidden"], adapters: Sequence[str | None]
    ) -> Float[Tensor, "batch *shape vocabulary"]:
        """Apply every row's own language-model head (the control tokens' columns differ between adapters).

        Raises:
            TunerError: as :meth:`forward`.
        """
        return self._scatter(adapters, len(hidden), lambda tuned, rows: tuned.logits(hidden[rows]))

    def _scatter(self, adapters: Sequence[str | None], size: int, run: Run) -> Tensor:
        if len(adapters) != size:
            raise TunerError(f"got {len(adapters)} adapter names for a batch of {size} rows, expected one a row")
        groups: dict[str | None, list[int]] = {}
        for row, name in enumerate(adapters):
            groups.setdefault(name, []).append(row)
        parts = []
        for name, members in groups.items():
            tuned = self.backbone if name is None else self.get(name)
            parts.append(run(tuned, torch.tensor(members, device=self.backbone.control.device)))
        order = torch.tensor([row for members in groups.values() for row in members], device=parts[0].device)
        return torch.cat(parts)[order.argsort()]

    def _ask(self, name: str) -> Backbone | None:
        with self._lock:
            self._info(name)
            if name in self._resident:
                self._resident.move_to_end(name)
            return self._resident.get(name)

    def _info(self, name: str) -> Adapter:
        if name not in self._known:
            raise TunerError(f"got the adapter {name!r}, which this pool does not know{nearest(name, self._known)}")
        return self._known[name]

    def _read(self, name: str, folder: Path, pin: bool) -> Backbone:
        self._check_room(name)
        tuned = open_adapter(self.backbone, folder)
        known = Adapter(name, folder, read_adapter_card(folder).method, self._own(tuned), pin, True)
        with self._lock:
            self._known[name], self._resident[name] = known, tuned
            self._resident.move_to_end(name)
            self._evict(spare=name)
        return tuned

    def _evict(self, spare: str) -> None:
        """Make the adapters fit, those first that were asked for longest ago."""
        for name in tuple(self._resident):
            if len(self._resident) <= self.capacity:
                return
            if name != spare and not self._known[name].pinned:
                del self._resident[name]

    def _check_room(self, name: str) -> None:
        """Refuse one more adapter than there are places that are not pinned."""
        with self._lock:
            pinned = [known.name for known in self._known.values() if known.pinned and known.name != name]
        if len(pinned) >= self.capacity:
            raise TunerError(
                f"got the adapter {name!r} for a pool whose {self.capacity} places are all pinned "
                f"({', '.join(sorted(pinned))}); unpin or unload one, or make the pool larger"
            )

    def _own(self, tuned: nn.Module) -> int:
        shared = {id(parameter) for parameter in self.backbone.parameters()}
        return sum(parameter.numel() for parameter in tuned.parameters() if id(parameter) not in shared)
