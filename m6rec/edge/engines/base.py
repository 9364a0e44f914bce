"""What an engine is: one graph on disk, answered on the CPU. Knows no method, no tree and no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray


@dataclass(frozen=True)
class EngineConfig:
    """Settings of every engine."""

    num_threads: int = 1
    """Threads that one answer may take; speed only."""


@runtime_checkable
class Engine(Protocol):
    """Answers one graph; any thread may ask.

    Built from the path of an ONNX file and a config.

    Raises:
        MissingExtraError: the engine's package is not installed.
        RunError: the file is missing or damaged.
    """

    Config: type

    def run(self, inputs: Mapping[str, NDArray[Any]], output: str | None = None) -> NDArray[Any]:
        """Return one output; nothing that it does not need is computed.

        Args:
            inputs: all inputs of the graph by name.
            output: its name; ``None`` = the only one.
        """
        ...
