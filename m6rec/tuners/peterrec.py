"""PeterRec's model patches: on dilated convolutions, as published, and on a Transformer."""

from dataclasses import dataclass
from typing import Literal

from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.backbones.sites import Sites, Span
from m6rec.tuners.bottleneck import Bottleneck, check_width, put_bottleneck, widest
from m6rec.tuners.inserted import InsertedTuner, sites_of


@dataclass(frozen=True)
class PeterRecConfig:
    """Settings of PeterRec's patches."""

    placement: Literal["2mp-serial", "1mp-serial", "parallel"] = "2mp-serial"
    """Behind attention and feed-forward, behind the feed-forward only, or beside the feed-forward; on NextItNet behind
    both convolutions of a block, behind its second, or beside both (changes results)."""
    bottleneck: int = 48
    """Units of every patch; an eighth of the width keeps a patch below a tenth of what it patches (changes results)."""
    budget: float | None = None
    """Largest share of the backbone's parameters to train, e.g. 1%: chooses the bottleneck in place of the setting
    above (changes results)."""
    seed: int = 0
    """Seed of the random start."""

    def __post_init__(self) -> None:
        check_width(self.bottleneck, self.budget)


class PeterRecTuner(InsertedTuner):
    """PeterRec's patches ``z + W_u gelu(W_d z + b_d) + b_u``, serial or parallel; starts as the frozen model.

    The task token, read at the end of a text, is our [EOS], whose row is trained as all control tokens' are.

    Source: Yuan et al., PeterRec (SIGIR 2020, arXiv 2001.04253), model patches; the activation and the places are those
    of the authors' code.
    Differs: a Transformer's attention and feed-forward stand for the two dilated convolutions of a block, which
    NextItNet has as published. The output projection starts at 0, so that all three start as the frozen model; and a
    parallel patch has no skip of its own, for the layer has one (with both, as in the authors' code, training starts
    from another model). Norms stay frozen, as their code calls training them "not very necessary".
    """

    Config = PeterRecConfig
    method = "peterrec"

    def insert(self, backbone: Backbone) -> Backbone:
        """Put a patch at every place."""
        places = [place for sites in sites_of(backbone, self.method) for place in self._places(sites)]
        width = self.config.bottleneck
        if self.config.budget is not None:
            width = widest(backbone, self.config.budget, len(places))
        for place in places:
            put_bottleneck(self, backbone, place, Bottleneck(backbone.hidden_size, width, F.gelu))
        self.chosen = {"bottleneck": width, "budget": None}
        return backbone

    def _places(self, sites: Sites) -> tuple[str | Span, ...]:
        match self.config.placement:
            case "2mp-serial":
                return (*sites.attention, *sites.feed_forward)
            case "1mp-serial":
                return sites.feed_forward
            case _:
                return sites.spans
