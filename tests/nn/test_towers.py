import pytest
import torch

from m6rec.nn.towers import ItemTower, Transitions, Whitening, own_history_pairs


def crowd(items=200, dim=12, seed=0):
    """Return vectors in a cone, some directions hundreds of times wider than others."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(items, dim, generator=rng) * torch.logspace(0, -2, dim) + 5


class TestWhitening:
    def test_the_covariance_is_the_identity(self):
        vectors, whitening = crowd(), Whitening(12, 12)
        whitening.fit(vectors)
        white = (vectors - whitening.mean) @ whitening.project
        torch.testing.assert_close(white.T @ white / len(white), torch.eye(12), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(white.mean(0), torch.zeros(12), atol=1e-4, rtol=0)

    def test_fewer_directions_are_the_widest(self):
        vectors, whitening, whole = crowd(), Whitening(12, 4), Whitening(12, 12)
        whitening.fit(vectors)
        whole.fit(vectors)
        torch.testing.assert_close(whitening.project, whole.project[:, :4])

    def test_rows_have_a_root_mean_square_of_one(self):
        whitening = Whitening(12, 7)
        whitening.fit(crowd())
        assert whitening(crowd(seed=1)[:5]).square().mean(1).sqrt().tolist() == pytest.approx([1] * 5, abs=1e-5)
        assert whitening(crowd(seed=1).view(4, 50, 12)).shape == (4, 50, 7)

    @pytest.mark.parametrize("items", [1, 2, 5])
    def test_few_items_keep_few_directions(self, items):
        whitening = Whitening(12, 8)
        whitening.fit(crowd(items))
        assert int((whitening.project.abs().sum(0) > 0).sum()) == items - 1
        assert whitening(crowd(20, seed=2)).isfinite().all()

    def test_items_that_read_alike_do_no_harm(self):
        whitening = Whitening(12, 8)
        whitening.fit(torch.ones(6, 12))
        assert whitening(crowd(5)).isfinite().all()

    def test_it_is_saved_whole(self):
        whitening, other = Whitening(12, 6), Whitening(12, 6)
        whitening.fit(crowd())
        other.load_state_dict(whitening.state_dict())
        assert torch.equal(other(crowd(seed=3)), whitening(crowd(seed=3)))


class TestItemTower:
    def test_the_residual_is_added_to_known_ids_alone(self):
        tower = ItemTower(8, 16, 4, num_ids=3, dropout=0.0, id_dropout=0.5).eval()
        texts = torch.randn(4, 8)
        bare = tower(texts, torch.full((4,), -1))
        ids = torch.tensor([2, -1, 0, -1])
        added = tower(texts, ids) - bare
        torch.testing.assert_close(added[[0, 2]], tower.residual.weight[[2, 0]], atol=1e-6, rtol=1e-4)
        assert torch.equal(added[[1, 3]], torch.zeros(2, 4))

    def test_a_share_of_residuals_is_dropped_in_training(self):
        torch.manual_seed(0)
        tower = ItemTower(8, 16, 4, num_ids=1000, dropout=0.0, id_dropout=0.3).train()
        texts, ids = torch.zeros(1000, 8), torch.arange(1000)
        with_residual = (tower(texts, ids) != tower(texts, torch.full((1000,), -1))).any(1)
        assert 0.65 < with_residual.float().mean() < 0.75
        assert (tower.eval()(texts, ids) != tower(texts, torch.full((1000,), -1))).any(1).all()

    def test_without_ids_there_is_no_table(self):
        tower = ItemTower(8, 16, 4, num_ids=0, dropout=0.0, id_dropout=0.3)
        assert tower.residual is None
        assert tower(torch.zeros(2, 8), torch.tensor([-1, -1])).shape == (2, 4)

    def test_an_unknown_id_gets_no_gradient(self):
        tower = ItemTower(8, 16, 4, num_ids=3, dropout=0.0, id_dropout=0.0)
        tower(torch.randn(3, 8), torch.tensor([1, -1, -1])).sum().backward()
        assert tower.residual.weight.grad.abs().sum(1).gt(0).tolist() == [False, True, False]


class TestTransitions:
    def test_a_case_by_hand(self):
        transitions = Transitions(2, 2)
        transitions.maps[0].data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        transitions.maps[1].data = torch.tensor([[10.0, 0.0], [0.0, 100.0]])
        events = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
        # Each event swapped, plus the event before with its halves times 10 and 100.
        expected = [[2.0, 1.0], [4.0 + 10, 3.0 + 200], [6.0 + 30, 5.0 + 400]]
        assert transitions(events)[0].tolist() == expected

    def test_it_starts_as_a_decayed_sum(self):
        events = torch.randn(2, 4, 3)
        expected = events.clone()
        expected[:, 1:] += events[:, :-1] / 2
        expected[:, 2:] += events[:, :-2] / 4
        torch.testing.assert_close(Transitions(3, 3)(events), expected)

    def test_more_lags_than_events(self):
        assert Transitions(3, 6)(torch.randn(1, 2, 3)).shape == (1, 2, 3)


class TestOwnHistoryPairs:
    def test_a_case_by_hand(self):
        inputs = torch.tensor([[4, -1, 7, 4], [1, 2, -1, -1]])
        targets = torch.tensor([[-1, 7, 4, 9], [2, 1, -1, -1]])
        rows, items = own_history_pairs(inputs, targets, targets >= 0)
        # Positions in order: (0, 1) -> 0, (0, 2) -> 1, (0, 3) -> 2, (1, 0) -> 3, (1, 1) -> 4.
        expected = {(0, 4), (1, 7), (2, 4), (2, 7), (3, 1), (4, 2)}
        assert set(zip(rows.tolist(), items.tolist(), strict=True)) == expected

    def test_rows_are_sorted(self):
        rng = torch.Generator().manual_seed(0)
        inputs, targets = (torch.randint(-1, 9, (5, 7), generator=rng) for _ in range(2))
        rows, _ = own_history_pairs(inputs, targets, targets >= 0)
        assert rows.tolist() == sorted(rows.tolist())
