"""Where something trained can be put into a layer: the one contract between backbones and what is inserted into them.

A Hugging Face family's sites stand in its anatomy; any other backbone returns its own from ``Backbone.sites``. This
module knows no family and no tuner.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A stretch of a layer from states to states, beside which something else can run.

    Args:
        first: path of the module that takes the states in.
        last: path of the module that gives the states out: the same one where a family keeps the stretch in one module
            (GPT-2's ``mlp``); where it keeps two (BERT), hidden units are all that passes from ``first`` to ``last``.
    """

    first: str
    last: str


@dataclass(frozen=True)
class Sites:
    """The sites of one layer, as dotted paths into ``Backbone.model``.

    Every module named here is called with one tensor. What a projection or a whole span gives out is ``hidden_size``
    wide, and a projection maps the last dimension alone.

    Args:
        attention: output projections of all that mixes tokens, before the residual is added (a T5 decoder has two).
        feed_forward: output projections of the feed-forward, before the residual is added.
        spans: the whole feed-forward (of a convolutional block, each convolution), for what runs in parallel to it.
    """

    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    spans: tuple[Span, ...]

    def under(self, path: str) -> "Sites":
        """Return the same sites with ``path`` before every path.

        >>> Sites(("attn.c_proj",), ("mlp.c_proj",), (Span("mlp", "mlp"),)).under("transformer.h.0").feed_forward
        ('transformer.h.0.mlp.c_proj',)
        """
        return Sites(
            attention=tuple(f"{path}.{name}" for name in self.attention),
            feed_forward=tuple(f"{path}.{name}" for name in self.feed_forward),
            spans=tuple(Span(f"{path}.{span.first}", f"{path}.{span.last}") for span in self.spans),
        )
