"""The examples in the docstrings of what this floor offers to others."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["ranking", "calibration", "beyond", "generation"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"m6rec.metrics.{module}"))
    assert result.attempted
    assert not result.failed
