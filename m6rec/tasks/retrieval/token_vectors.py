"""A vector a token: how texts become them, and how well a window's moments match the items of a batch.

Knows no catalogue, no index and no loss.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.nn.maxsim import best_matches
from m6rec.tasks.retrieval.history_flat import FlatBatch
from m6rec.text.batch import TokenBatch


class TokenReadout(nn.Module):
    """Reads a text as a short unit vector for each of its tokens.

    Args:
        hidden_size: of the backbone's states.
        dim: of the vectors.

    Source: Khattab and Zaharia, ColBERT (arXiv 2004.12832), equations 1 and 2: one linear layer without a bias for
        both sides, unit vectors. Differs: no [MASK] tokens lengthen a query, and punctuation stays.
    """

    def __init__(self, hidden_size: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden_size, dim, bias=False)

    def forward(self, backbone: Backbone, tokens: TokenBatch) -> Float[Tensor, "texts tokens dim"]:
        """Return the vectors of a batch of texts, in float32; zeros on padding."""
        vectors = F.normalize(self.project(backbone(tokens).float()).float(), dim=-1)
        return vectors * tokens.keep.unsqueeze(-1)


def seen_tokens(batch: FlatBatch) -> Bool[Tensor, "positions tokens"]:
    """Return which tokens of its tree each position may be matched by: the events so far, and its own branch.

    A trunk token sees no later event, so that these tokens' states are those of the events so far alone.
    """
    tokens = batch.tokens
    branches, blocks = tokens.branches[batch.rows], tokens.blocks[batch.rows]
    own = branches == tokens.branches[batch.rows, batch.columns, None]
    so_far = (branches == 0) & (blocks <= tokens.blocks[batch.rows, batch.columns, None])
    return tokens.keep[batch.rows] & (own | so_far)


def mean_maxsim(
    users: Float[Tensor, "windows tokens dim"],
    seen: Bool[Tensor, "positions tokens"],
    rows: Int[Tensor, " positions"],
    items: Float[Tensor, "columns vectors dim"],
    keep: Bool[Tensor, "columns vectors"],
) -> Float[Tensor, "positions columns"]:
    """Return how well each moment of each window is answered by each item: the mean over the tokens seen by then.

    A token's best match is looked for once a window, whatever the number of its moments.

    Args:
        users: token vectors of the windows.
        seen: which of them each moment has.
        rows: window of each moment.
        items: token vectors of the items.
        keep: ``False`` on the items' padding.

    Source: ColBERT, equation 3. Differs: a mean and not a sum, so that a long history is no louder than a short one.
    """
    best = best_matches(users.flatten(0, 1), items, keep).unflatten(0, users.shape[:2])
    share = seen / seen.sum(1, keepdim=True)
    # No matrix product: autocast would round means whose differences are small.
    return (share[..., None] * best[rows].float()).sum(1)
