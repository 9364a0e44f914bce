"""Small heads over plain numbers. They know no model and no meaning of the numbers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class NumberHead(nn.Module):
    """Numbers to one logit through a small hidden layer.

    Args:
        num_features: numbers a row.
        hidden: width of the hidden layer.
    """

    def __init__(self, num_features: int, hidden: int = 32) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(num_features, hidden), nn.Linear(hidden, 1)

    def forward(self, numbers: Float[Tensor, "rows features"]) -> Float[Tensor, "rows 1"]:
        """Return a logit a row."""
        logits: Tensor = self.outer(F.gelu(self.inner(numbers)))
        return logits

    def fit(
        self, numbers: Float[Tensor, "rows features"], labels: Float[Tensor, " rows"], seed: int, num_epochs: int = 10
    ) -> None:
        """Start from what the numbers say alone: logistic regression by minibatches, some seconds for a million rows.

        Args:
            numbers: training rows.
            labels: 0 or 1.
            seed: of the order.
            num_epochs: passes.
        """
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=1e-3)
        size = max(64, min(4096, len(numbers) // 20))
        for epoch in range(num_epochs):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - epoch / num_epochs)
            for rows in torch.randperm(len(numbers), generator=generator).split(size):
                loss = F.binary_cross_entropy_with_logits(self(numbers[rows])[:, 0], labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        # Whoever trains on must not find the last gradient of this here.
        self.zero_grad(set_to_none=True)
