"""Late interaction by MaxSim: every query vector finds its most similar document vector. Knows no model, no index."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def maxsim(
    queries: Float[Tensor, "queries tokens width"],
    documents: Float[Tensor, "queries documents vectors width"],
    query_keep: Bool[Tensor, "queries tokens"],
    document_keep: Bool[Tensor, "queries documents vectors"],
) -> Float[Tensor, "queries documents"]:
    """Return how well each query's own documents answer it: the sum over its tokens of the best inner product.

    A document that keeps nothing scores minus infinity; a query that keeps nothing scores zero for all others.

    Args:
        queries: token vectors, normed or not.
        documents: those that each query is compared with.
        query_keep: ``False`` on padding.
        document_keep: ``False`` on padding.

    Source: Khattab and Zaharia, ColBERT (arXiv 2004.12832), equation 3.

    >>> ask, answer = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[[0.5, 0.0], [0.0, 2.0]]]])
    >>> maxsim(ask, answer, torch.ones(1, 2) > 0, torch.ones(1, 1, 2) > 0).tolist()
    [[2.5]]
    """
    products = torch.einsum("qtw,qdvw->qdtv", queries, documents)
    best = products.masked_fill(~document_keep[:, :, None, :], float("-inf")).amax(-1)
    found = best.masked_fill(~query_keep[:, None, :], 0.0).sum(-1)
    return found.masked_fill(~document_keep.any(-1), float("-inf"))


def maxsim_in_batch(
    queries: Float[Tensor, "queries tokens width"],
    documents: Float[Tensor, "documents vectors width"],
    query_keep: Bool[Tensor, "queries tokens"],
    document_keep: Bool[Tensor, "documents vectors"],
) -> Float[Tensor, "queries documents"]:
    """Return :func:`maxsim` of every query with every document, as a contrastive loss over a batch wants it.

    >>> ask, keep = torch.eye(2)[:, None], torch.ones(2, 1) > 0
    >>> maxsim_in_batch(ask, 3 * ask, keep, keep).tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """
    best = best_matches(queries.flatten(0, 1), documents, document_keep).unflatten(0, query_keep.shape)
    found = best.masked_fill(~query_keep[..., None], 0.0).sum(1)
    return found.masked_fill(~document_keep.any(-1), float("-inf"))


def best_matches(
    vectors: Float[Tensor, "rows width"],
    documents: Float[Tensor, "documents vectors width"],
    document_keep: Bool[Tensor, "documents vectors"],
) -> Float[Tensor, "rows documents"]:
    """Return each vector's best inner product within each document; what MaxSim sums over a query's tokens.

    >>> best_matches(torch.eye(2), torch.tensor([[[3.0, 1.0], [2.0, 9.0]]]), torch.tensor([[True, False]])).tolist()
    [[3.0], [1.0]]
    """
    # Padding repeats a vector that is kept, and the place of the maximum is all that the gradient needs: of the largest
    # tensor by far there is no second copy.
    kept = documents[torch.arange(len(documents), device=documents.device), document_keep.int().argmax(1)]
    filled = documents.where(document_keep[..., None], kept[:, None])
    best = (vectors @ filled.flatten(0, 1).T).unflatten(1, document_keep.shape).max(-1).values
    return best.masked_fill(~document_keep.any(-1), float("-inf"))
