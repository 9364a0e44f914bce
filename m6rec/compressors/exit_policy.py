"""When an answer is sure enough to stop. This module knows logits and rows, no model."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from m6rec.compressors.exit_config import ExitConfig


class Judge:
    """Says after each layer which points may leave.

    Args:
        config: policy and thresholds.
        rows: ``[points]`` row of each point: the list that it stands in.

    Source: entropy: BranchyNet (arXiv 1709.01686), DeeBERT (arXiv 2004.12993); patience: PABEE (arXiv 2006.04152).
    Differs: patience watches the probabilities, as PABEE does for regression: what is ranked by a probability is not
        settled when its class is.
    """

    def __init__(self, config: ExitConfig, rows: Tensor) -> None:
        self.config, self._rows = config, rows
        self._before = torch.empty(0)
        self._calm = torch.zeros(len(rows), dtype=torch.long, device=rows.device)

    def leave(self, points: Tensor, logits: Tensor) -> Tensor:
        """Return ``[some]`` bool: which of the points still in the walk are sure.

        Args:
            points: ``[some]`` their numbers.
            logits: ``[some, classes]`` their answers at this layer.
        """
        chances = logits.softmax(-1)
        if self.config.policy in _CONFIDENCE:
            sure = _CONFIDENCE[self.config.policy](chances, self.config.threshold)
        else:
            sure = self._unchanged(points, chances)
        return self._whole_rows(points, sure) if self.config.unit == "row" or self.config.policy == "order" else sure

    def _unchanged(self, points: Tensor, chances: Tensor) -> Tensor:
        first = not len(self._before)
        if first:
            self._before = torch.zeros(len(self._rows), chances.shape[1], device=chances.device)
        before = self._before[points]
        if self.config.policy == "patience":
            same = (chances - before).abs().amax(-1) <= self.config.threshold
        else:
            same = self._same_order(self._rows[points], before[:, -1], chances[:, -1])
        self._calm[points] = 0 if first else torch.where(same, self._calm[points] + 1, 0)
        self._before[points] = chances
        return self._calm[points] >= self.config.patience

    def _same_order(self, rows: Tensor, before: Tensor, now: Tensor) -> Tensor:
        same = torch.zeros_like(rows, dtype=torch.bool)
        for row in rows.unique().tolist():
            own = rows == row
            best = [scores[own].argsort(descending=True, stable=True)[: self.config.top] for scores in (before, now)]
            same[own] = torch.equal(*best)
        return same

    def _whole_rows(self, points: Tensor, sure: Tensor) -> Tensor:
        rows = self._rows[points]
        return ~torch.isin(rows, rows[~sure])


def _is_certain(chances: Tensor, threshold: float) -> Tensor:
    return torch.special.entr(chances).sum(-1) <= threshold * math.log(chances.shape[-1])


def _is_ahead(chances: Tensor, threshold: float) -> Tensor:
    best = chances.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1] >= threshold


_CONFIDENCE: dict[str, Callable[[Tensor, float], Tensor]] = {"entropy": _is_certain, "margin": _is_ahead}
