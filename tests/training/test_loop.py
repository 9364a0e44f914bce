import json
import logging
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from m6rec.errors import CheckpointError, ConfigError, DataError, RunError, UnknownNameError
from m6rec.training import run as run_module
from m6rec.training.loop import TrainingConfig, train

PLAIN = TrainingConfig(num_epochs=3, batch_size=4, lr=1e-2, precision="fp32", log_every=2, save_every=None)


def weights(task, backbone):
    modules = nn.ModuleDict({"task": task, "backbone": backbone})
    return {name: tensor.detach().clone() for name, tensor in modules.state_dict().items()}


def losses(result):
    return [(record["step"], record["loss"], record["figures"]) for record in result.history if "loss" in record]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_learns_and_says_what_it_did(toys, tmp_path):
    task, backbone = toys()
    before = weights(task, backbone)
    result = train(task, backbone, replace(PLAIN, num_epochs=20), tmp_path)
    assert (result.steps, result.epochs, result.stopped, result.interrupted) == (120, 20.0, "finished", False)
    assert result.seconds > 0
    assert result.cpu_seconds > 0
    first, last = losses(result)[0][1], losses(result)[-1][1]
    assert last < 0.3 * first
    after = weights(task, backbone)
    assert torch.equal(after["backbone.table.weight"], before["backbone.table.weight"])
    assert not torch.equal(after["backbone.model.0.weight"], before["backbone.model.0.weight"])
    assert not task.training
    assert not backbone.training
    lines = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert lines[:-1] == result.history
    assert lines[-1]["event"] == "finished"


def test_every_example_is_seen_once_an_epoch(toys, tmp_path):
    task, backbone = toys()
    train(task, backbone, PLAIN, tmp_path)
    for epoch in range(3):
        batches = task.seen[6 * epoch : 6 * epoch + 6]
        assert sorted(number for batch in batches for number in batch) == list(range(23))


@pytest.mark.parametrize("accumulation", [2, 3, 7])
def test_accumulation_changes_nothing(toys, tmp_path, accumulation):
    # 5 in a batch and 7 pieces: unequal pieces of unequal weight, and fewer examples than pieces.
    results = []
    for parts in (1, accumulation):
        task, backbone = toys()
        result = train(task, backbone, replace(PLAIN, batch_size=5, gradient_accumulation=parts), tmp_path / f"{parts}")
        results.append((weights(task, backbone), losses(result)))
    (big, big_losses), (cut, cut_losses) = results
    for name in big:
        torch.testing.assert_close(cut[name], big[name], rtol=1e-4, atol=1e-5)
    for one, other in zip(big_losses, cut_losses, strict=True):
        assert other[1] == pytest.approx(one[1], rel=1e-5)


def test_the_gradient_of_pieces_is_the_gradient_of_the_whole(toys, tmp_path):
    # Plain autograd over all examples at once, against one step in 4 pieces whose means are over 1 to 5 tokens each.
    task, backbone = toys()
    task.refresh = lambda backbone, epoch: None
    whole = task.loss(backbone, task.collate(task.examples()))
    whole.value.backward()
    parameters = [p for p in (*task.parameters(), *backbone.parameters()) if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters]).item()
    backbone.zero_grad()
    task.zero_grad()
    config = replace(PLAIN, max_steps=1, batch_size=23, gradient_accumulation=4, clip=None)
    (record,) = train(task, backbone, config, tmp_path).history
    assert record["loss"] == pytest.approx(whole.value.item(), rel=1e-5)
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_clipping_bounds_the_step(toys, tmp_path):
    moved = []
    for clip in (1e-9, None):
        task, backbone = toys()
        before = weights(task, backbone)["task.head.weight"]
        train(task, backbone, replace(PLAIN, max_steps=1, clip=clip), tmp_path / str(clip))
        moved.append((weights(task, backbone)["task.head.weight"] - before).abs().max().item())
    assert moved[0] < 0.5 * moved[1]


RESUMED = replace(
    PLAIN, log_every=4, ema=0.9, evaluate_every="epoch", select_on="figure", gradient_accumulation=2, save_every=5
)


def scored(task, backbone):
    """Return an evaluation that depends on the weights, draws random numbers and disturbs every generator."""

    def evaluate(step):
        torch.manual_seed(step)
        return {"figure": task.head.weight.sum().item() + torch.rand(1).item()}

    return evaluate


def timeless(history):
    clocks = ("seconds", "cpu_seconds", "examples_per_second")
    return [{name: value for name, value in record.items() if name not in clocks} for record in history]


@pytest.fixture(scope="module")
def uninterrupted(toys, tmp_path_factory):
    task, backbone = toys(dropout=0.5)
    result = train(task, backbone, RESUMED, tmp_path_factory.mktemp("whole"), evaluate=scored(task, backbone))
    return weights(task, backbone), result


# The loss is computed twice a step: inside the second epoch, at the end of the first, and in the very last step.
@pytest.mark.parametrize("stop_at", [[15, 29], [12], [36]])
def test_resumed_equals_uninterrupted_bit_for_bit(toys, tmp_path, uninterrupted, stop_at):
    for piece in stop_at:
        task, backbone = toys(dropout=0.5)
        done = 2 * (stop_at[0] // 2 + 1) if piece != stop_at[0] else 0
        task.before_loss[piece - done] = sigterm
        result = train(task, backbone, RESUMED, tmp_path, resume=True, evaluate=scored(task, backbone))
        assert result.interrupted
    task, backbone = toys(dropout=0.5)
    result = train(task, backbone, RESUMED, tmp_path, resume=True, evaluate=scored(task, backbone))
    expected, whole = uninterrupted
    assert equal(weights(task, backbone), expected)
    assert timeless(result.history) == timeless(whole.history)
    assert (result.steps, result.best, result.best_step) == (whole.steps, whole.best, whole.best_step)
    assert result.seconds > sum(record["seconds"] for record in result.history[:1])


def test_a_crash_costs_only_the_steps_since_the_last_checkpoint(toys, tmp_path, uninterrupted):
    def crash():
        raise KeyboardInterrupt

    task, backbone = toys(dropout=0.5)
    task.before_loss[25] = crash
    with pytest.raises(KeyboardInterrupt):
        train(task, backbone, RESUMED, tmp_path, evaluate=scored(task, backbone))
    task, backbone = toys(dropout=0.5)
    result = train(task, backbone, RESUMED, tmp_path, resume=True, evaluate=scored(task, backbone))
    assert len(task.seen) == 2 * (18 - 10)
    assert equal(weights(task, backbone), uninterrupted[0])
    assert timeless(result.history) == timeless(uninterrupted[1].history)


def test_a_finished_run_resumes_to_the_same_end_and_can_go_on(toys, tmp_path):
    task, backbone = toys()
    train(task, backbone, PLAIN, tmp_path)
    again, other = toys()
    result = train(again, other, PLAIN, tmp_path, resume=True)
    assert not again.seen
    assert (result.steps, result.stopped) == (18, "finished")
    assert equal(weights(again, other), weights(task, backbone))
    assert train(again, other, replace(PLAIN, num_epochs=4), tmp_path, resume=True).steps == 24


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 8}, {"bucket_by_length": False}])
def test_resume_refuses_what_would_change_the_order(toys, tmp_path, change):
    train(*toys(), replace(PLAIN, max_steps=1), tmp_path)
    with pytest.raises(CheckpointError, match=next(iter(change))):
        train(*toys(), replace(PLAIN, **change), tmp_path, resume=True)


def test_resume_says_which_settings_have_changed(toys, tmp_path, caplog):
    train(*toys(), replace(PLAIN, max_steps=1), tmp_path)
    with caplog.at_level(logging.WARNING):
        train(*toys(), replace(PLAIN, max_steps=2, lr=1e-4), tmp_path, resume=True)
    assert "lr=0.0001, was 0.01" in caplog.text


def test_resume_refuses_another_dataset(toys, tmp_path):
    train(*toys(), replace(PLAIN, max_steps=1), tmp_path)
    with pytest.raises(CheckpointError, match="num_examples: got 9, expected 23"):
        train(*toys(num_examples=9), PLAIN, tmp_path, resume=True)


def test_another_runs_checkpoints_are_not_overwritten(toys, tmp_path):
    train(*toys(), replace(PLAIN, max_steps=1), tmp_path)
    with pytest.raises(RunError, match="resume it, or take another folder"):
        train(*toys(), PLAIN, tmp_path)


def test_a_signal_ends_at_the_step_boundary_and_handlers_come_back(toys, tmp_path):
    former = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    task, backbone = toys()
    task.before_loss[3] = lambda: os.kill(os.getpid(), signal.SIGINT)
    result = train(task, backbone, replace(PLAIN), tmp_path)
    assert (result.stopped, result.steps) == ("interrupted", 3)
    assert (tmp_path / "checkpoints" / "step-00000003").is_dir()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == former


def test_a_loss_that_is_not_finite_loses_nothing(toys, tmp_path):
    task, backbone = toys()
    task.before_loss[4] = lambda: float("nan")
    with pytest.raises(RunError, match="step 4: the loss is nan"):
        train(task, backbone, replace(PLAIN), tmp_path)
    assert all(tensor.isfinite().all() for tensor in weights(task, backbone).values())
    again, other = toys()
    train(again, other, PLAIN, tmp_path, resume=True)
    whole, third = toys()
    train(whole, third, PLAIN, tmp_path / "whole")
    assert equal(weights(again, other), weights(whole, third))


def test_a_full_disk_is_said_and_the_former_checkpoint_stays(toys, tmp_path, monkeypatch):
    task, backbone = toys()
    real = os.fsync

    def fill():
        monkeypatch.setattr(
            "os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )

    task.before_loss[8] = fill
    with pytest.raises(CheckpointError, match="No space left"):
        train(task, backbone, replace(PLAIN, save_every="epoch"), tmp_path)
    monkeypatch.setattr("os.fsync", real)
    task, backbone = toys()
    assert train(task, backbone, PLAIN, tmp_path, resume=True).stopped == "finished"
    assert len(task.seen) == 12


def test_an_evaluation_that_fails_costs_nothing(toys, tmp_path):
    def fail(step):
        raise ZeroDivisionError

    config = replace(PLAIN, evaluate_every=4)
    with pytest.raises(ZeroDivisionError):
        train(*toys(), config, tmp_path, evaluate=fail)
    task, backbone = toys()
    result = train(task, backbone, config, tmp_path, resume=True, evaluate=lambda step: {"figure": 1.0})
    assert len(task.seen) == 18 - 4
    assert [record["step"] for record in result.history if "evaluation" in record] == [4, 8, 12, 16, 18]


def test_the_best_weights_are_kept(toys, tmp_path):
    met = {}

    def evaluate(step):
        met[step] = task.head.weight.detach().clone()
        return {"recall": {6: 0.1, 12: 0.3, 18: 0.2}[step]}

    task, backbone = toys()
    config = replace(PLAIN, evaluate_every="epoch", select_on="recall")
    result = train(task, backbone, config, tmp_path, evaluate=evaluate)
    assert (result.best, result.best_step) == (0.3, 12)
    assert torch.equal(task.head.weight, met[12])


def test_the_start_is_kept_where_training_only_harms(toys, tmp_path):
    task, backbone = toys()
    before = task.head.weight.detach().clone()
    config = replace(PLAIN, evaluate_every="epoch", evaluate_first=True, select_on="loss", select_lowest=True)
    result = train(task, backbone, config, tmp_path, evaluate=lambda step: {"loss": float(step)})
    assert (result.best, result.best_step) == (0.0, 0)
    assert torch.equal(task.head.weight, before)


@pytest.mark.parametrize(("lowest", "best_step", "steps"), [(True, 1, 3), (False, 4, 6)])
def test_patience(toys, tmp_path, lowest, best_step, steps):
    figures = [1.0, float("nan"), 1.5, 2.0, 1.0, 1.0]
    config = replace(PLAIN, evaluate_every=1, select_on="x", select_lowest=lowest, patience=2)
    result = train(*toys(), config, tmp_path, evaluate=lambda step: {"x": figures[step - 1]})
    assert (result.stopped, result.best_step, result.steps) == ("patience", best_step, steps)
    assert json.loads((tmp_path / "train_log.jsonl").read_text().splitlines()[-1])["event"] == "patience"


def test_an_unknown_figure_is_said_with_the_nearest(toys, tmp_path):
    config = replace(PLAIN, evaluate_every=1, select_on="ndgc@10")
    with pytest.raises(UnknownNameError, match="did you mean ndcg@10"):
        train(*toys(), config, tmp_path, evaluate=lambda step: {"ndcg@10": 0.1})


def test_the_average_is_what_is_evaluated_and_kept(toys, tmp_path):
    met = []
    task, backbone = toys()
    config = replace(PLAIN, ema=0.9, evaluate_every="epoch")
    train(task, backbone, config, tmp_path / "a", evaluate=lambda step: met.append(task.head.weight.clone()) or {})
    assert torch.equal(task.head.weight, met[-1])
    other, third = toys()
    train(other, third, PLAIN, tmp_path / "b")
    assert not torch.equal(task.head.weight, other.head.weight)


def test_a_cpu_budget_ends_the_run_and_the_schedule(toys, tmp_path, monkeypatch):
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(run_module.time, "process_time", lambda: next(clock))
    config = replace(PLAIN, num_epochs=None, max_cpu_seconds=40, schedule="linear", warmup=0.25, log_every=1)
    result = train(*toys(), config, tmp_path)
    assert (result.stopped, result.steps) == ("budget", 40)
    rates = [record["lr"] for record in result.history]
    assert max(rates) == pytest.approx(1e-2)
    assert rates.index(max(rates)) == 10
    assert rates[-1] == pytest.approx(1e-2 / 30)


def test_the_schedule_follows_the_limit_that_is_nearest(toys, tmp_path):
    config = replace(PLAIN, num_epochs=100, max_steps=10, schedule="linear", warmup=0.0, log_every=1)
    rates = [record["lr"] for record in train(*toys(), config, tmp_path).history]
    assert rates == pytest.approx([1e-2 * (1 - (step + 0.5) / 10) for step in range(10)])


def test_bf16_is_near_and_not_equal(toys, tmp_path):
    met = []
    for precision in ("fp32", "bf16"):
        task, backbone = toys()
        met.append(losses(train(task, backbone, replace(PLAIN, precision=precision), tmp_path / precision))[-1][1])
        assert task.head.weight.dtype == torch.float32
    assert met[0] != met[1]
    assert met[0] == pytest.approx(met[1], rel=0.05)


def test_two_precisions_and_an_outer_environment_do_not_meet(toys, tmp_path, monkeypatch):
    train(*toys(), replace(PLAIN, max_steps=1), tmp_path / "a")
    expected = losses(train(*toys(), replace(PLAIN, max_steps=4), tmp_path / "b"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert losses(train(*toys(), replace(PLAIN, max_steps=4), tmp_path / "c")) == expected


def test_tensorboard(toys, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(PLAIN, tracker="tensorboard", evaluate_every="epoch")
    train(*toys(), config, tmp_path, evaluate=lambda step: {"ndcg@10": step / 100})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("evaluation/ndcg@10")] == [
        (step, pytest.approx(step / 100)) for step in (6, 12, 18)
    ]
    assert len(events.Scalars("loss")) == 9


def test_bad_input(toys, tmp_path):
    with pytest.raises(DataError, match="no training examples"):
        train(*toys(num_examples=0), PLAIN, tmp_path)
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        train(*toys(), replace(PLAIN, evaluate_every="epoch"), tmp_path)
    task, backbone = toys()
    with pytest.raises(ConfigError, match="nothing to train"):
        train(task.requires_grad_(False), backbone.requires_grad_(False), PLAIN, tmp_path)


def test_one_example_and_a_large_batch(toys, tmp_path):
    result = train(*toys(num_examples=1), replace(PLAIN, batch_size=64, gradient_accumulation=4), tmp_path)
    assert (result.steps, result.epochs) == (3, 3.0)


def test_a_log_that_cannot_be_written_stops_nothing(toys, tmp_path, caplog):
    (tmp_path / "train_log.jsonl").mkdir()
    assert train(*toys(), PLAIN, tmp_path).stopped == "finished"
    assert caplog.text.count("cannot write") == 1


def test_the_bar_shows_on_a_terminal_only(toys, tmp_path, monkeypatch, capsys):
    train(*toys(), PLAIN, tmp_path / "a")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    train(*toys(), PLAIN, tmp_path / "b")
    shown = capsys.readouterr().err
    assert "step 18" in shown
    assert "examples/s" in shown
    assert "left" in shown
