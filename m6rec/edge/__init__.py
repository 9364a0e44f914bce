"""Serving on small machines: an exported run through onnxruntime, without torch."""
