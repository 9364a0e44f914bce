"""Graphs answered by OpenVINO. Knows no tree and no torch."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from m6rec.edge.engines.base import EngineConfig
from m6rec.errors import RunError, needs


class OpenVinoEngine:
    """Runs a graph by OpenVINO on the CPU, read from the same ONNX file.

    An output is compiled when it is first asked for, without the layers beyond it.

    Args:
        path: of the ONNX file.
        config: threads.

    Raises:
        MissingExtraError: openvino is not installed.
        RunError: the file is missing or damaged, or holds an operation that OpenVINO does not know.
    """

    name = "openvino"
    Config = EngineConfig

    def __init__(self, path: Path, config: EngineConfig) -> None:
        with needs("openvino"):
            import openvino
        self._openvino, self._core, self._path = openvino, openvino.Core(), path
        # Its own choice would be bfloat16 where the processor has it: another model than the one that was exported.
        self._settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": config.num_threads,
            "NUM_STREAMS": 1,
        }
        self._compiled: dict[str | None, Any] = {}
        self._lock = threading.Lock()
        try:
            self._graph = self._core.read_model(path)
        except RuntimeError as error:
            raise RunError(f"{path} cannot be read ({error}); export the run again") from error

    def run(self, inputs: Mapping[str, NDArray[Any]], output: str | None = None) -> NDArray[Any]:
        """Return one output (see :class:`~m6rec.edge.engines.base.Engine`)."""
        with self._lock:
            if output not in self._compiled:
                self._compiled[output] = self._compile(output)
        # A request of its own: those of one compiled graph's wait for each other.
        answer = self._compiled[output].create_infer_request().infer(dict(inputs))
        found: NDArray[Any] = answer[0]
        return found

    def _compile(self, output: str | None) -> Any:
        port = self._graph.output() if output is None else self._graph.output(output)
        part = self._openvino.Model([port.get_node()], self._graph.get_parameters())
        try:
            return self._core.compile_model(part, "CPU", self._settings)
        except RuntimeError as error:
            raise RunError(f"{self._path} cannot be run by OpenVINO ({error}); open it by onnxruntime") from error
