from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.training.stream import Stream, epoch_batches, share_out


@settings(max_examples=60, deadline=None)
@given(
    num_examples=st.integers(1, 90),
    batch_size=st.integers(1, 40),
    num_processes=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    bucketed=st.booleans(),
)
def test_every_example_is_counted_once_an_epoch(num_examples, batch_size, num_processes, accumulation, bucketed):
    lengths = np.arange(num_examples) % 7 if bucketed else None
    counted = Counter()
    for rank in range(num_processes):
        stream = Stream(
            num_examples,
            batch_size,
            lengths=lengths,
            rank=rank,
            num_processes=num_processes,
            accumulation=accumulation,
        )
        for index in range(stream.num_batches):
            pieces = stream.pieces(2, index)
            # A process that ran nothing would leave the others waiting for its gradients.
            assert pieces
            assert all(piece.indices for piece in pieces)
            for piece in pieces:
                counted.update(piece.indices if piece.counted else ())
    assert counted == Counter(range(num_examples))


def test_a_stand_in_is_never_counted():
    pieces = [share_out(np.array([4, 9]), rank, num_processes=3, accumulation=1) for rank in range(3)]
    assert [piece.counted for (piece,) in pieces] == [True, True, False]


def test_at_most_one_batch_is_short():
    for lengths in (None, np.arange(103)):
        sizes = [len(batch) for batch in epoch_batches(103, 10, seed=0, epoch=0, lengths=lengths)]
        assert sorted(sizes) == [3] + [10] * 10


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(epoch_batches(50, 7, seed, epoch)).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_any_batch_can_be_taken_up_alone():
    whole = Stream(50, 7, seed=3)
    met = [whole.pieces(epoch, index) for epoch in range(2) for index in range(whole.num_batches)]
    assert Stream(50, 7, seed=3).pieces(1, 4) == met[whole.num_batches + 4]


def test_buckets_waste_little_padding_and_stay_random():
    lengths = np.random.default_rng(0).integers(1, 200, 2000)

    def padding(batches):
        return sum(len(batch) * lengths[batch].max() - lengths[batch].sum() for batch in batches) / lengths.sum()

    bucketed = epoch_batches(2000, 20, seed=0, epoch=0, lengths=lengths)
    assert padding(bucketed) < 0.05 < 0.5 < padding(epoch_batches(2000, 20, seed=0, epoch=0))
    means = [lengths[batch].mean() for batch in bucketed]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3
    again = epoch_batches(2000, 20, seed=0, epoch=1, lengths=lengths)
    assert {frozenset(batch.tolist()) for batch in bucketed}.isdisjoint(frozenset(batch.tolist()) for batch in again)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_get_equal_work_of_a_sorted_batch(accumulation):
    shares = [share_out(np.arange(64), rank, 2, accumulation) for rank in range(2)]
    work = [sum(index for piece in pieces for index in piece.indices) for pieces in shares]
    assert abs(work[0] - work[1]) <= 32
