"""Information-bottleneck kernels: compress a state to what a scene needs of it, and add that back in the scene's terms.

One bank holds the kernels of all scenes, and every row of a batch takes its own scene's. This module knows no model and
no meaning of a scene.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Gaussian:
    """Normal distributions with independent dimensions.

    Args:
        mean: ``[..., bottleneck]``.
        log_variance: ``[..., bottleneck]``.
    """

    mean: Float[Tensor, "*shape bottleneck"]
    log_variance: Float[Tensor, "*shape bottleneck"]

    def sample(self) -> Float[Tensor, "*shape bottleneck"]:
        """Draw once from each, so that gradients reach mean and variance."""
        return self.mean + torch.randn_like(self.mean) * (0.5 * self.log_variance).exp()

    def divergence(self) -> Float[Tensor, "*shape"]:
        """Return the Kullback-Leibler divergence of each from the standard normal, in nats.

        >>> float(Gaussian(torch.ones(1, 3), torch.zeros(1, 3)).divergence())
        1.5
        """
        mean, log_variance = self.mean.float(), self.log_variance.float()
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class SceneLinear(nn.Module):
    """A linear map a scene.

    Args:
        num_scenes: how many maps.
        inputs: width that comes in.
        outputs: width that goes out.
    """

    def __init__(self, num_scenes: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(num_scenes, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_scenes, outputs))

    def forward(
        self, states: Float[Tensor, "batch tokens inputs"], scenes: Int[Tensor, " rows"]
    ) -> Float[Tensor, "batch tokens outputs"]:
        """Map every row with its scene's weights.

        Args:
            states: what comes in.
            scenes: ``[batch]`` scene of each row, or ``[1]``: that of them all.
        """
        return torch.matmul(states, self.weight[scenes]) + self.bias[scenes].unsqueeze(1)


class KernelBank(nn.Module):
    """The kernels of all scenes at one place of a model: ``h + W_u act(z)`` with ``z ~ N(mu(h), sigma(h))``.

    The encoder (``mu`` and ``log sigma^2``: compression) reads the state without its mean and scale, so that one weight
    of the divergence suits models whose states are normed and models whose states are not. The decoder (``W_u``:
    matching) starts at zero: a new bank changes nothing.

    Args:
        num_scenes: how many kernels.
        width: of the states.
        bottleneck: dimensions of ``z``.
        log_variance: of ``z`` at the start.
        linear: whether the decoder reads ``z`` itself instead of ``gelu(z)``.

    Source: Jiang et al., IAK (arXiv 2501.14268): an encoder compresses, a decoder matches, under a Gaussian
        approximation; and the variational bottleneck of Alemi et al. (arXiv 1612.00410), equation 17.
    Differs: widths, activation and place are not in what we could read of the paper; they are our reconstruction.
    """

    def __init__(
        self, num_scenes: int, width: int, bottleneck: int, log_variance: float = -4.0, *, linear: bool = False
    ) -> None:
        super().__init__()
        self.linear = linear
        self.mean = SceneLinear(num_scenes, width, bottleneck)
        self.log_variance = SceneLinear(num_scenes, width, bottleneck)
        self.decoder = SceneLinear(num_scenes, bottleneck, width)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, log_variance)
        nn.init.zeros_(self.decoder.weight)

    def encode(self, states: Float[Tensor, "batch tokens width"], scenes: Int[Tensor, " rows"]) -> Gaussian:
        """Compress states."""
        # In the kernel's own precision: a backbone may be stored in half of what is trained.
        normed = F.layer_norm(states.to(self.mean.weight.dtype), states.shape[-1:])
        return Gaussian(self.mean(normed, scenes), self.log_variance(normed, scenes))

    def decode(
        self, code: Float[Tensor, "batch tokens bottleneck"], scenes: Int[Tensor, " rows"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return what a code adds to the state that it was made from."""
        change: Tensor = self.decoder(code if self.linear else F.gelu(code), scenes)
        return change

    def forward(
        self, states: Float[Tensor, "batch tokens width"], scenes: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "batch tokens width"], Gaussian]:
        """Return the states with their scenes' change, and the codes: drawn in training, their means otherwise."""
        codes = self.encode(states, scenes)
        code = codes.sample() if self.training else codes.mean
        return states + self.decode(code, scenes).to(states.dtype), codes
