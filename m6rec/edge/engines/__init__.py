"""Shelf of engines: what runs an exported graph."""

from m6rec.registry import Registry

ENGINES = Registry(
    "engine",
    {
        "onnxruntime": "m6rec.edge.engines.onnxruntime:OnnxRuntimeEngine",
        "openvino": "m6rec.edge.engines.openvino:OpenVinoEngine",
    },
    group="m6rec.engines",
)
