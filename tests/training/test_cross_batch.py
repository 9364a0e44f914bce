"""Cross-batch negatives with real processes: two of B are one of 2B, and one that dies is told about."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from m6rec.assemble import open_experiment
from tests.little_shop import SMALL

ROOT = Path(__file__).parents[2]
WORDS = ["task.negatives=batch", "task.logq=true"]

SCRIPT = """
import os, sys
from pathlib import Path
import torch
from torch import distributed as dist
from m6rec.assemble import build
from m6rec.nn.gather import num_processes
from m6rec.recipe import read_recipe
from m6rec.training.dense import DenseRetrieval
from m6rec.training.dense_config import DenseConfig

out, words = Path(sys.argv[1]), sys.argv[2:]
rank = int(os.environ.get("RANK", 0))
if "RANK" in os.environ:
    dist.init_process_group("gloo")
experiment = build(read_recipe("retrieval", words))
task = DenseRetrieval(experiment.task, DenseConfig(mask_taken=True)).eval()
task.refresh(experiment.backbone, 0)
# Strides of unequal size: rows are padded on their way.
examples = [task.examples()[index] for index in range(rank, 9, num_processes())]
loss = task.loss(experiment.backbone, task.collate(examples))
(loss.value * loss.weight).backward()
total = torch.tensor([float(loss.value.detach()) * loss.weight, loss.weight], dtype=torch.float64)
found = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
if num_processes() > 1:
    for tensor in [total, *found.values()]:
        dist.all_reduce(tensor)
if rank == 0:
    torch.save({"loss": total[0] / total[1], **{name: grad / total[1] for name, grad in found.items()}}, out)
if num_processes() > 1:
    dist.destroy_process_group()
"""

DYING = """
import os, sys
from m6rec.workflows import stages
from m6rec.errors import RunError
from m6rec.recipe import read_recipe
from m6rec.training.dense import DenseRetrieval

rank, steps, loss = int(os.environ["RANK"]), [], DenseRetrieval.loss

def dies(self, backbone, batch):
    steps.append(1)
    if rank == 1 and len(steps) == 3:
        os._exit(9)
    return loss(self, backbone, batch)

DenseRetrieval.loss = dies
try:
    stages.train(read_recipe("retrieval", sys.argv[1:]))
except RunError as error:
    print(error, flush=True)
    os._exit(2)
"""


def start(script, *words, rank=None, port=None):
    """Start one process; with a rank, one of two."""
    one = {} if rank is None else {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    place = {} if rank is None else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | one | place
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(processes, timeout=200):
    """Return what each has said, once all have ended; kill them after ``timeout`` seconds."""
    limit, said = time.monotonic() + timeout, []
    try:
        said = [process.communicate(timeout=max(1.0, limit - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def words(shop, tiny_folder, tmp_path):
    places = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}"]
    return [*places, *SMALL["retrieval"], *WORDS]


def test_two_processes_of_a_batch_are_one_of_twice_the_batch(words, tmp_path):
    port = free_port()
    one = start(SCRIPT, tmp_path / "one.pt", *words)
    two = [start(SCRIPT, tmp_path / "two.pt", *words, rank=rank, port=port) for rank in range(2)]
    said = ended([one, *two])
    assert [process.returncode for process in (one, *two)] == [0, 0, 0], said
    expected, found = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert len(expected) > 5
    assert expected["loss"] > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_process_that_dies_is_told_about_and_the_run_goes_on_later(words, tmp_path):
    words = [*words, "dense.mask_taken=true", "training.max_steps=4", "training.save_every=1"]
    port = free_port()
    two = [start(DYING, *words, rank=rank, port=port) for rank in range(2)]
    (said, errors), _ = ended(two)
    assert (two[0].returncode, two[1].returncode) == (2, 9), errors[-3000:]
    assert "lost another" in said
    assert "--resume" in said
    assert not (tmp_path / "run" / "run.json").exists()
    from m6rec.recipe import read_recipe
    from m6rec.workflows import stages

    _, result = stages.train(read_recipe("retrieval", words), resume=True)
    assert (result.steps, result.stopped) == (4, "finished")
    lines = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    assert {"event": "resumed", "step": 2, "checkpoint": "step-00000002"} in lines
    assert open_experiment(tmp_path / "run").task.blend.shape == (2,)
