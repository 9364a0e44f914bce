"""What only real processes show: two of them against one, and a signal from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m6rec.training.loop import TrainingConfig, train

HERE = Path(__file__).parent
# 23 examples, 4 in a batch, 3 pieces for each of 2 processes: unequal pieces, and processes with nothing to do.
CONFIG = TrainingConfig(
    num_epochs=2, batch_size=4, gradient_accumulation=3, lr=1e-2, precision="fp32", log_every=1, save_every=None
)

SCRIPT = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from m6rec.training.launch import start_missing_processes
start_missing_processes()
sys.path.insert(0, sys.argv[1])
from accelerate import PartialState
from conftest import ToyBackbone, ToyTask
from safetensors.torch import save_file
from m6rec.training.loop import TrainingConfig, train

out, config = Path(sys.argv[2]), TrainingConfig(**json.loads(sys.argv[3]))
rank = int(os.environ["RANK"])

def once(name, dropout, before_loss=(), resume=False, config=config):
    backbone, task = ToyBackbone(dropout), ToyTask()
    task.before_loss = dict(before_loss)
    result = train(task, backbone, config, out / name, resume=resume, evaluate=lambda step: {"rank": float(rank)})
    weights = {key: value for module in (task, backbone) for key, value in module.state_dict().items()}
    return task, result, weights

task, result, weights = once("plain", 0.0)
(out / f"seen-{rank}.json").write_text(json.dumps(task.seen))
if rank == 0:
    save_file(weights, out / "plain.safetensors")
    (out / "history.json").write_text(json.dumps(result.history))

# Only process 1 gets the signal, and both must stop at the same step; with dropout, and evaluated.
dropped = replace(config, evaluate_every=3)
_, _, whole = once("whole", 0.5, config=dropped)
stop = {5: lambda: os.kill(os.getpid(), signal.SIGTERM)} if rank == 1 else {}
_, cut, _ = once("cut", 0.5, stop, config=dropped)
_, rest, resumed = once("cut", 0.5, resume=True, config=dropped)
(out / f"resumed-{rank}.json").write_text(json.dumps({
    "stopped": [cut.stopped, cut.steps, rest.stopped, rest.steps],
    "equal": all(whole[key].equal(resumed[key]) for key in whole),
    "evaluated_by": [record["evaluation"]["rank"] for record in rest.history if "evaluation" in record],
    "cpu_seconds": rest.cpu_seconds,
}))
PartialState().destroy_process_group()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Run the script in two processes and return where it has written."""
    out = tmp_path_factory.mktemp("two")
    (out / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    settings = json.dumps(dict(vars(CONFIG)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent.parent)}
    command = [*launch, str(out / "script.py"), str(HERE), str(out), settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def test_two_processes_see_the_data_once(two):
    seen = [json.loads((two / f"seen-{rank}.json").read_text()) for rank in range(2)]
    counted = Counter(number for batches in seen for batch in batches for number in batch)
    # A process without a share of a batch runs its first example at weight 0; there are two such batches of 3 or fewer.
    assert set(counted) == set(range(23))
    assert 46 <= sum(counted.values()) <= 48


def test_two_processes_equal_one(two, toys, tmp_path):
    task, backbone = toys()
    result = train(task, backbone, replace(CONFIG, gradient_accumulation=1), tmp_path)
    one = {name: value for module in (task, backbone) for name, value in module.state_dict().items()}
    for name, value in load_file(two / "plain.safetensors").items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-5)
    history = json.loads((two / "history.json").read_text())
    assert [record["loss"] for record in history] == pytest.approx([record["loss"] for record in result.history])
    norms = [record["gradient_norm"] for record in history]
    assert norms == pytest.approx([record["gradient_norm"] for record in result.history], rel=1e-4)


def test_two_processes_stop_together_and_resume_exactly(two):
    for rank in range(2):
        found = json.loads((two / f"resumed-{rank}.json").read_text())
        cut, steps, rest, all_steps = found["stopped"]
        assert (cut, rest, all_steps) == ("interrupted", "finished", 12)
        assert 0 < steps < 12
        assert found["equal"]
        assert found["evaluated_by"] == [0.0] * 4


def test_sigterm_from_outside_saves_and_exits_cleanly(toys, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "from conftest import ToyBackbone, ToyTask\n"
        "from m6rec.training.loop import TrainingConfig, train\n"
        "config = TrainingConfig(num_epochs=None, max_steps=10**9, batch_size=4, precision='fp32', log_every=1)\n"
        f"result = train(ToyTask(), ToyBackbone(), config, Path({str(tmp_path)!r}))\n"
        "print(result.stopped, result.steps)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent.parent)}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as process:
        log = tmp_path / "train_log.jsonl"
        while not (log.is_file() and log.read_text().count("\n") > 3) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    stopped, steps = said.split()
    assert stopped == "interrupted"
    task, backbone = toys()
    config = TrainingConfig(num_epochs=None, max_steps=int(steps), batch_size=4, precision="fp32", save_every=None)
    result = train(task, backbone, config, tmp_path, resume=True)
    assert (result.steps, task.seen) == (int(steps), [])
