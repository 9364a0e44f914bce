"""Says what comes next in a dialogue, piece by piece. Knows no session: a dialogue comes whole."""

from collections.abc import Iterator
from typing import Any

from m6rec.serving.stage import Update
from m6rec.serving.stages.base import PlainStage


class Chat(PlainStage):
    """Writes the reply to a dialogue, with real items of the catalogue in it.

    **Source:** M6-Rec (arXiv 2205.08084), section 3, conversational recommendation.
    """

    name = "chat"
    kinds = ("chat",)

    def __call__(self, payload: Any) -> Iterator[str | Update]:  # type: ignore[override]
        """Yield the reply in pieces, and at the end whole."""
        request = payload["request"]
        for piece in self.models.recommender.chat_stream(request.get("turns", []), **(request.get("decoding") or {})):
            if isinstance(piece, str):
                yield piece
            else:
                items = [vars(item) for item in piece.items]
                yield {"answer": {"text": piece.text, "items": items, "confidence": piece.confidence}}
