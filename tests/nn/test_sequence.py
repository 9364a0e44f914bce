import pytest
import torch

from m6rec.nn.sequence import SequenceEncoder


@pytest.fixture(params=[0, 3], ids=["no transitions", "transitions"])
def encoder(request):
    torch.manual_seed(0)
    encoder = SequenceEncoder(
        dim=6,
        width=8,
        num_layers=2,
        num_heads=2,
        dropout=0.2,
        input_dropout=0.2,
        max_events=5,
        num_verbs=4,
        num_gaps=3,
        num_lags=request.param,
    )
    for parameter in encoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return encoder.eval()


def inputs(length=7, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, length, 6, generator=rng),
        torch.randint(4, (2, length), generator=rng),
        torch.randint(3, (2, length), generator=rng),
        torch.ones(2, length, dtype=torch.bool),
    )


@pytest.mark.parametrize("what", [0, 1, 2], ids=["event", "verb", "gap"])
@pytest.mark.parametrize("time", [0, 3, 6])
def test_no_state_knows_a_later_event(encoder, what, time):
    given = inputs()
    before = encoder(*given)
    changed = [tensor.clone() for tensor in given]
    changed[what][:, time] = changed[what][:, time] + 5 if what == 0 else (changed[what][:, time] + 1) % 3
    after = encoder(*changed)
    assert torch.equal(after[:, :time], before[:, :time])
    assert (after[:, time:] != before[:, time:]).any(-1)[:, 0].all()


def test_padding_changes_nothing(encoder):
    events, verbs, gaps, keep = inputs()
    whole = encoder(events, verbs, gaps, keep)
    short = encoder(events[:, :4], verbs[:, :4], gaps[:, :4], keep[:, :4])
    torch.testing.assert_close(short, whole[:, :4], atol=1e-5, rtol=1e-5)
    keep = keep.clone()
    keep[0, 4:] = False
    events = events.clone()
    events[0, 4:] = 99.0
    padded = encoder(events, verbs, gaps, keep)
    torch.testing.assert_close(padded[0, :4], whole[0, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded[1], whole[1], atol=1e-5, rtol=1e-5)
    assert padded.isfinite().all()


def test_users_do_not_see_each_other(encoder):
    events, verbs, gaps, keep = inputs()
    whole = encoder(events, verbs, gaps, keep)
    alone = encoder(events[1:], verbs[1:], gaps[1:], keep[1:])
    torch.testing.assert_close(alone[0], whole[1], atol=1e-5, rtol=1e-5)


def test_training_drops_and_evaluation_does_not(encoder):
    given = inputs()
    assert torch.equal(encoder(*given), encoder(*given))
    encoder.train()
    assert not torch.equal(encoder(*given), encoder(*given))
