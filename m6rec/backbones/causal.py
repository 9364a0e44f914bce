"""The decoder-only families: GPT-2, Llama, Qwen3. This module knows no checkpoint."""

from m6rec.backbones.pretrained import PretrainedBackbone


class CausalBackbone(PretrainedBackbone):
    """A decoder (GPT-2, Llama, Qwen3): every region is read forward, as the model was pretrained.

    Source: M6-Rec (arXiv 2205.08084) section 3.
    Differs: the user side is causal too, for these models have never seen a later token.
    """

    family = "causal"
    causal = True
