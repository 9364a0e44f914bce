"""Graphs answered by onnxruntime. Knows no tree and no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from m6rec.edge.engines.base import EngineConfig
from m6rec.errors import RunError, needs


class OnnxRuntimeEngine:
    """Runs a graph by onnxruntime, which also rounds the weights at export.

    Args:
        path: of the ONNX file.
        config: threads.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: the file is missing or damaged.
    """

    name = "onnxruntime"
    Config = EngineConfig

    def __init__(self, path: Path, config: EngineConfig) -> None:
        with needs("edge"):
            import onnxruntime
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = config.num_threads
        self._asked = onnxruntime.RunOptions()
        self._asked.only_execute_path_to_fetches = True
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors are of many classes, one a status code
            raise RunError(f"{path} cannot be read ({error}); export the run again") from error

    def run(self, inputs: Mapping[str, NDArray[Any]], output: str | None = None) -> NDArray[Any]:
        """Return one output (see :class:`~m6rec.edge.engines.base.Engine`)."""
        found: NDArray[Any] = self._session.run(None if output is None else [output], inputs, self._asked)[0]
        return found
