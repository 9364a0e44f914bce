"""Fills blanks of free text, or goes on with it, piece by piece. Knows no catalogue."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import PlainStage
from m6rec.text.segments import BLANK


class Generate(PlainStage):
    """Writes free text: into its blanks, or behind it.

    A text without a blank is handed on as it is written; one with blanks comes whole.

    **Source:** M6-Rec (arXiv 2205.08084), section 3, text generation.
    """

    name = "generate"
    kinds = ("generate",)

    def __call__(self, payload: Any) -> Iterator[str | Update]:  # type: ignore[override]
        """Yield the text in pieces, and at the end whole."""
        request: Payload = payload["request"]
        text, source, decoding = request.get("text", ""), request.get("source", ""), request.get("decoding") or {}
        recommender = self.models.recommender
        if isinstance(text, str) and BLANK not in text:
            pieces = []
            for piece in recommender.stream(text, source, **decoding):
                pieces.append(piece)
                yield piece
            yield {"answer": {"texts": [{"text": f"{text.rstrip()} {''.join(pieces).strip()}".strip()}]}}
            return
        filled = recommender.generate([text] if isinstance(text, str) else text, source, **decoding)
        yield {"answer": {"texts": [{**asdict(one), "text": one.text} for one in filled]}}
