import numpy as np
import pytest

from m6rec.coldstart.draws import Draws
from m6rec.coldstart.episodes import Episodes, Protocol
from m6rec.data.store import Dataset
from m6rec.errors import DataError
from tests.coldstart.toy import episodes


class TestEpisodes:
    def test_ratings_in_the_order_of_the_log_each_item_once(self, shop):
        dataset = Dataset.open(shop)
        found, histories = Episodes.of(dataset, threshold=4), dataset.histories()
        for row, user in enumerate(found.users):
            part = slice(found.offsets[row], found.offsets[row + 1])
            events = histories.of(int(user))
            items, values = histories.items[events], histories.values[events]
            first = dict(zip(items[::-1].tolist(), values[::-1].tolist(), strict=True))
            first.pop(-1, None)
            expected = list(dict.fromkeys(item for item in items.tolist() if item >= 0))
            assert found.items[part].tolist() == expected
            assert found.values[part].tolist() == [first[item] for item in expected]
        assert np.array_equal(found.labels, found.values >= 4)

    def test_impressions_are_judgements_in_time_order(self, little_world):
        found = Episodes.of(Dataset.open(little_world), threshold=None)
        assert set(np.unique(found.labels)) == {0.0, 1.0}
        same_user = np.diff(found.rows) == 0
        assert (np.diff(found.times)[same_user] >= 0).all()

    def test_a_log_without_labels_gets_unmet_items_beside_what_was_done(self, shop):
        dataset = Dataset.open(shop)
        found = Episodes.of(dataset, threshold=None, num_negatives=2)
        met = dataset.histories()
        for row, user in enumerate(found.users):
            part = slice(found.offsets[row], found.offsets[row + 1])
            done = set(met.items[met.of(int(user))].tolist())
            assert all(
                (item in done) == bool(label) for item, label in zip(found.items[part], found.labels[part], strict=True)
            )
        # Otherwise a support of one would always be a yes.
        assert 0.1 < found.labels[found.offsets[:-1]].mean() < 0.9

    def test_a_threshold_needs_ratings(self, little_world, tmp_path):
        from tests.little_shop import prepare_shop, shop_events

        unrated = [{**event, "stars": ""} for event in shop_events(5)]
        with pytest.raises(DataError, match="no ratings"):
            Episodes.of(Dataset.open(prepare_shop(tmp_path, unrated)), threshold=4)


class TestProtocol:
    def test_no_user_is_in_two_parts_and_the_tested_have_enough(self):
        protocol, users = Protocol(support=5, min_queries=3), episodes(40, 3, 14)
        parts = protocol.divide(users, seed=1)
        names = [set(part.users.tolist()) for part in parts.values()]
        assert set.union(*names) == set(users.users.tolist())
        assert sum(map(len, names)) == len(users)
        assert all((parts[part].lengths >= 8).all() for part in ("valid", "test"))

    def test_another_seed_is_another_division_and_the_same_seed_the_same(self):
        protocol, users = Protocol(support=2, min_queries=1), episodes(40, 5, 9)
        drawn = [protocol.divide(users, seed)["test"].users.tolist() for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_support_and_query_are_disjoint_and_the_query_is_one_for_all_sizes(self):
        protocol, users = Protocol(support=5, min_queries=3, max_queries=4), episodes(20, 8, 14)
        queries = protocol.queries(users)
        for size in protocol.sizes():
            for row, (support, query) in enumerate(zip(protocol.supports(users, size), queries, strict=True)):
                assert support.stop - support.start == size
                assert support.start == users.offsets[row]
                assert support.stop <= query.start == users.offsets[row] + 5
                assert query.stop - query.start <= 4
                # Not the same item under another number either.
                assert not set(users.items[support]) & set(users.items[query])

    def test_too_few_users_say_what_to_set(self):
        with pytest.raises(DataError, match="min_queries lower"):
            Protocol(support=50).divide(episodes(10, 5, 9), seed=0)

    def test_impossible_settings(self):
        with pytest.raises(DataError, match="three shares"):
            Protocol(shares=(0.5, 0.5, 0.5))


class TestDraws:
    def test_queries_come_later_than_the_support(self):
        users, protocol = episodes(12, 2, 40), Protocol(support=5)
        draws = Draws(users, protocol, number=6, queries=4, seed=0)
        assert len(draws) == 72
        for draw in draws[:]:
            support, queries = draws.cut(draw)
            own = range(users.offsets[draw[0]], users.offsets[draw[0] + 1])
            assert set(support) | set(queries) <= set(own)
            assert 1 <= len(queries) <= 4
            assert not len(support) or support.max() < queries.min()

    def test_a_draw_depends_on_its_user_and_number_alone(self):
        users, protocol = episodes(12, 9, 40), Protocol(support=5)
        few, many = (Draws(users, protocol, number, queries=4, seed=3) for number in (2, 5))
        assert all(np.array_equal(a, b) for a, b in zip(few.cut(few[7]), many.cut(few[7]), strict=True))
