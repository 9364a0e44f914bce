"""Offline scoring: a parquet file of requests becomes one of answers. Knows no server."""

from m6rec.serving.batch.config import BatchConfig
from m6rec.serving.batch.job import BatchJob
from m6rec.serving.batch.run import run_batch

__all__ = ["BatchConfig", "BatchJob", "run_batch"]
