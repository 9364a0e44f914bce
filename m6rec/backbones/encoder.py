"""The BERT family, run as a prefix-LM. This module knows no checkpoint."""

from m6rec.backbones.pretrained import PretrainedBackbone


class EncoderBackbone(PretrainedBackbone):
    """A bidirectional encoder (BERT, MiniLM): source in both directions, targets forward, by the mask alone.

    The language-model head is tied to the token embedding, with nothing between: a sentence encoder's checkpoint has
    lost the transform it was pretrained with, and on a frozen model the identity is the only neutral one.

    Source: M6-Rec (arXiv 2205.08084) section 3: one model, bidirectional user side, autoregressive target side.
    """

    family = "encoder"
    causal = False
