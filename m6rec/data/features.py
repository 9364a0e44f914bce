"""The numbers of a candidate as a model takes them. Knows neither how they are counted nor their words."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from m6rec.data.statistics import ItemStatistics, Record, StatisticsConfig

STATISTICS = (
    "popularity",
    "positive_rate",
    "user_rate",
    "category_rate",
    "category_count",
    "brand_count",
    "item_count",
)
NUM_FEATURES = 2 * len(STATISTICS)


def features(numbers: Mapping[str, Sequence[float] | NDArray[np.float64]]) -> NDArray[np.float32]:
    """Return statistics as ``[pairs, NUM_FEATURES]`` numbers of order one: each value, and whether it is known.

    Percentages are centred, counts are logarithms, an unknown value is zero.
    """
    columns = []
    for name in STATISTICS:
        values = np.asarray(numbers[name], dtype=np.float64)
        scaled = np.log1p(np.maximum(values, 0)) if name.endswith("count") else values / 50.0 - 1.0
        columns += [np.nan_to_num(scaled), np.isfinite(values).astype(np.float64)]
    return np.stack(columns, axis=1).astype(np.float32)


def statistics_of_request(
    known: NDArray[np.float64],
    events: Sequence[Record],
    items: Sequence[tuple[int | None, Record]],
    config: StatisticsConfig,
) -> dict[str, NDArray[np.float64]]:
    """Return every number of :data:`STATISTICS` of candidates for a user known by records alone.

    Args:
        known: ``[num_items, 2]`` popularity and positive rate of the catalogue.
        events: the user's, each with ``item`` (a record), ``value`` and ``verb`` where known.
        items: each candidate's position in the catalogue (``None`` = a stranger) and fields.
        config: as in training.
    """
    unknown = np.full(2, np.nan)
    counted = np.array([known[place] if place is not None and place < len(known) else unknown for place, _ in items])
    bonds = ItemStatistics.cross_of(events, [record for _, record in items], config)
    return {"popularity": counted.reshape(-1, 2)[:, 0], "positive_rate": counted.reshape(-1, 2)[:, 1], **bonds}
