import pytest

from m6rec.config import field_help, parse, plain
from m6rec.errors import ConfigError
from m6rec.training.config import TrainingConfig


def test_defaults_are_valid_and_every_field_is_documented():
    assert field_help(TrainingConfig).keys() == plain(TrainingConfig()).keys()


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(batch_size=0, lr=-1, warmup=2, ema=1, patience=3, seed=-1, max_cpu_seconds=float("nan"))
    told = str(caught.value)
    for name in ("batch_size", "lr", "warmup", "ema", "patience", "seed", "max_cpu_seconds"):
        assert name in told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_epochs": None}, "never end"),
        ({"patience": 1}, "select_on"),
        ({"select_on": "ndcg@10"}, "evaluate_every"),
    ],
)
def test_settings_that_need_each_other(settings, told):
    with pytest.raises(ConfigError, match=told):
        TrainingConfig(**settings)


def test_every_is_a_number_of_steps_or_epoch():
    assert parse(TrainingConfig, {"save_every": "epoch", "evaluate_every": 5}).evaluate_every == 5
    with pytest.raises(ConfigError, match="save_every"):
        parse(TrainingConfig, {"save_every": "week"})
