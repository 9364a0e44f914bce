"""Rows answered by Ray Data's workers, each with something costly opened once. Knows nothing of what they do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m6rec.errors import needs


def answered_on_ray(
    worker: type, given: tuple[Any, ...], rows: Sequence[Mapping[str, Any]], num_workers: int | tuple[int, int]
) -> Iterator[Mapping[str, Any]]:
    """Yield what workers give for rows, one row a call, in any order.

    Args:
        worker: class that Ray keeps an instance of in every worker; called with a batch of one row.
        given: what it is made from; has to pickle.
        rows: what is asked.
        num_workers: a number, or the least and the most; a core each.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    with needs("ray"):
        import ray.data
    asked = ray.data.from_items([dict(row) for row in rows], override_num_blocks=len(rows))
    done = asked.map_batches(worker, fn_constructor_args=given, batch_size=1, concurrency=num_workers, num_cpus=1)
    yield from done.iter_rows()
