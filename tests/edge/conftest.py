"""What runs exported graphs: every engine that is installed."""

import pytest


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> str:
    """Return the name of an engine."""
    pytest.importorskip(request.param)
    return request.param
