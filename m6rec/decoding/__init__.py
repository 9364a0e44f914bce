"""Writing: how the next tokens are chosen, one after the other, on any backbone with a past."""

from m6rec.decoding.blanks import Form, fill, filled
from m6rec.decoding.config import DecodingConfig
from m6rec.decoding.opening import Constraint, Opening, Written
from m6rec.decoding.write import stream, write

__all__ = ["Constraint", "DecodingConfig", "Form", "Opening", "Written", "fill", "filled", "stream", "write"]
