import json

import pytest

from m6rec.baselines.markov import Markov, MarkovConfig
from m6rec.baselines.stopping import mean_ndcg
from m6rec.baselines.tuning import tune
from m6rec.errors import ConfigError, UnknownNameError
from tests.contracts.baseline_contract import group_judgements, ring_log


@pytest.fixture(scope="module")
def log():
    return ring_log(80)


def test_the_default_is_tried_first_and_the_best_is_kept(log):
    tuning = tune("markov", log.before("train"), log.queries("valid"), trials=5)
    assert len(tuning.trials) == 5
    assert tuning.trials[0].config == MarkovConfig()
    assert tuning.best.value == max(trial.value for trial in tuning.trials)
    assert len({trial.config for trial in tuning.trials}) == 5
    best = Markov(tuning.best.config)
    best.fit(log.before("train"))
    assert mean_ndcg(best.score, log.queries("valid")) == tuning.best.value


def test_the_same_seed_tries_the_same(log):
    arguments = ("sasrec", log.before("train"), log.queries("valid"), 3)
    fixed = {"width": 8, "num_layers": 1, "max_epochs": 1}
    first, second = (tune(*arguments, seed=1, fixed=fixed).to_dict() for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first))["trials"][0]["log"]["stopped"] == "max_epochs"
    assert all(trial["config"]["width"] == 8 for trial in first["trials"])
    assert first != tune(*arguments, seed=2, fixed=fixed).to_dict()


def test_pairs_are_tuned_by_auc(log):
    tuning = tune("rate", group_judgements(log, 0), group_judgements(log, 1), trials=9)
    assert tuning.metric == "auc"
    assert len(tuning.trials) == 6  # the default, then the whole space


def test_wrong_input_is_told(log):
    with pytest.raises(ConfigError, match="judgements"):
        tune("rate", log.before("train"), group_judgements(log, 1), trials=1)
    with pytest.raises(UnknownNameError, match="did you mean markov"):
        tune("markow", log.before("train"), log.queries("valid"), trials=1)
