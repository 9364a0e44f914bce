import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.data.buckets import NUM_BUCKETS, Buckets, bucket_of
from m6rec.data.keys import Keys, digest, mix


def ids_of(keys, seed=0, kind="item"):
    coded = Keys(kind, seed)
    codes = coded.encode(pa.array(keys, pa.string()))
    return dict(zip(keys, coded.ids(np.ones(len(coded), bool))[codes].tolist(), strict=True))


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, unique=True), st.randoms(use_true_random=False), st.integers(-5, 5))
def test_ids_are_a_permutation_that_ignores_order_and_repetition(keys, random, seed):
    shuffled = [*keys, *keys]
    random.shuffle(shuffled)
    ids = ids_of(keys, seed)
    assert sorted(ids.values()) == list(range(len(keys)))
    assert ids_of(shuffled, seed) == ids


def test_a_new_key_keeps_the_order_of_the_others():
    keys = [f"k{number}" for number in range(100)]
    before, after = ids_of(keys), ids_of(["new", *keys])
    assert sorted(keys, key=before.get) == sorted(keys, key=after.get)


def test_ids_depend_on_seed_and_kind_and_not_on_first_sight():
    keys = [f"k{number}" for number in range(100)]
    orders = [tuple(ids_of(keys, seed, kind).values()) for seed, kind in [(0, "item"), (1, "item"), (0, "user")]]
    assert len({*orders, tuple(range(100))}) == 4


def test_dropped_keys_get_no_id():
    coded = Keys("user", 0)
    coded.encode(pa.array(["a", "b", "c"]))
    ids = coded.ids(np.array([True, False, True]))
    assert ids[1] == -1
    assert sorted(ids.tolist()) == [-1, 0, 1]


def test_find_does_not_add():
    coded = Keys("item", 0)
    coded.encode(pa.array(["a"]))
    assert coded.find(["a", "b"]).tolist() == [0, -1]
    assert len(coded) == 1


def test_mix_spreads_bits():
    numbers = mix(np.arange(1 << 14, dtype=np.uint64), np.full(1 << 14, digest("x", "ties", 0), np.uint64))
    assert len(np.unique(numbers)) == 1 << 14
    bits = np.unpackbits(numbers.view(np.uint8)).reshape(-1, 64).mean(0)
    assert np.abs(bits - 0.5).max() < 0.03


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=30), max_size=6), st.integers(1, 40))
def test_buckets_keep_every_row_in_order(tmp_path_factory, tables, flush_rows):
    import m6rec.data.buckets as module

    buckets = Buckets(tmp_path_factory.mktemp("buckets") / "b")
    row, expected = 0, {}
    with_rows = module.FLUSH_ROWS
    module.FLUSH_ROWS = flush_rows
    try:
        for places in tables:
            places = np.array(places, np.uint64)
            rows = np.arange(row, row + len(places))
            row += len(places)
            for number, bucket in zip(rows.tolist(), bucket_of(places).tolist(), strict=True):
                expected.setdefault(bucket, []).append(number)
            buckets.add(pa.table({"row": rows}), places)
        buckets.close()
    finally:
        module.FLUSH_ROWS = with_rows
    assert {number: table["row"].to_pylist() for number, table in buckets.numbered()} == expected
    assert buckets.num_rows == row


def test_buckets_follow_places():
    places = np.sort(np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64))
    assert (np.diff(bucket_of(places).astype(int)) >= 0).all()
    assert bucket_of(places).max() == NUM_BUCKETS - 1
