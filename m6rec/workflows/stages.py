"""A recipe in stages: a retriever, a ranker over what it finds, a retriever taught by both (RocketQA).

Each stage leaves its artefacts in ``out/stages/NAME`` and is skipped once they are there; the last one's run is ``out``
itself. Knows no command line.

::

    1-retriever   a run: large batches alone                               (RocketQA's M_D0)
    2-ranker      report.json: how good the ranker is in its lists         (M_C)
    3-lists       what 1 finds at every position, judged by 2
    4-denoised    a run: hard negatives that 2 is sure of                  (M_D1; only before pseudo labels)
    out           a run: with pseudo labels by 4 and 2, and what 2 teaches (M_D2)
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.table import Table

from m6rec.assemble import Experiment, train_run
from m6rec.errors import ConfigError
from m6rec.recipe import Recipe
from m6rec.runs import CARD_FILE, read_card
from m6rec.tasks.base import Task
from m6rec.tasks.retrieval.task import Retrieval
from m6rec.training.dense import DenseRetrieval, Lessons
from m6rec.training.dense_config import DenseConfig, DistilConfig, HardConfig, PseudoConfig
from m6rec.training.judges import Ranker, RankerReport, examine
from m6rec.training.lists import Lists
from m6rec.training.loop import TrainResult
from m6rec.training.mining import Miner, Retriever, validation_lists
from m6rec.training.pseudo import PseudoLabels, pseudo_label
from m6rec.workflows import distilling
from m6rec.workflows.mining import MinerPlan, mine_on_ray

FOLDER, REPORT_FILE = "stages", "report.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teachers:
    """What teaches a retriever: another one, that finds, and a ranker, that judges.

    Args:
        experiment: the retriever's run over its dataset.
        plan: what it and the ranking run were opened from.
        miner: finds with it, and has the ranker look.
        ranker: calibrated on validation.
        report: how good it is there.
        validation: lists of validation's moments.
    """

    experiment: Experiment
    plan: MinerPlan
    miner: Miner
    ranker: Ranker
    report: RankerReport
    validation: Lists


def train(recipe: Recipe, *, resume: bool = False) -> tuple[Experiment, TrainResult]:
    """Train a recipe: in stages where its retrieval is taught by an earlier one, by a teacher's labels, or at once.

    Args:
        recipe: with or without ``dense``.
        resume: go on in the stage that was stopped in.

    Raises:
        ConfigError: ``dense`` for another task than retrieval.
        RunError: as :func:`m6rec.assemble.train_run`; or a ranker that prefers what nobody took.
    """
    config = recipe.dense
    if recipe.distillation is not None:
        return distilling.train(recipe, resume=resume)
    if config is None:
        return train_run(recipe, resume=resume)
    if recipe.task["name"] != "retrieval":
        raise ConfigError(f"dense: teaches retrieval, got task {recipe.task['name']!r}; leave it out")
    if config.gather and recipe.training.gradient_accumulation > 1:
        raise ConfigError(
            "dense.gather compares the items of all processes, so that all must run as many pieces: set "
            "training.gradient_accumulation=1 (dense.chunk saves the memory), or dense.gather=false"
        )
    if not config.needs_lists:
        return train_run(recipe, resume=resume, wrap=lambda experiment: _alone(experiment, config))
    return _train_in_stages(recipe, config, resume)


def _train_in_stages(recipe: Recipe, config: DenseConfig, resume: bool) -> tuple[Experiment, TrainResult]:
    folder = Path(recipe.out) / FOLDER
    first = Path(config.teacher) if config.teacher else folder / "1-retriever"
    if config.teacher is None:
        done = _train_stage(recipe, first, _first(config), None, resume)
        if done is not None and done[1].interrupted:
            return done
    teachers = open_teachers(first, recipe, folder)
    lists = _stage("3-lists", lambda: mine(teachers, config.hard, folder / "3-lists"))
    pseudo, out = None, Path(recipe.out)
    if config.pseudo.share:
        second, only = folder / "4-denoised", _denoised(config)
        done = _train_stage(recipe, second, only, lambda found: taught(found, only, teachers, lists, second), resume)
        if done is not None and done[1].interrupted:
            return done
        pseudo = label(open_teachers(second, recipe, folder), config, recipe.seed)

    def wrap(found: Experiment) -> Task:
        return taught(found, config, teachers, lists, out, pseudo)

    return _stage("out", lambda: train_run(recipe, resume=resume and _started(out), wrap=wrap))


def _first(config: DenseConfig) -> DenseConfig:
    return replace(config, guide=None, hard=HardConfig(), pseudo=PseudoConfig(), distil=DistilConfig())


def _denoised(config: DenseConfig) -> DenseConfig:
    return replace(config, pseudo=PseudoConfig(), distil=DistilConfig())


def _train_stage(
    recipe: Recipe, out: Path, config: DenseConfig, wrap: Callable[[Experiment], Task] | None, resume: bool
) -> tuple[Experiment, TrainResult] | None:
    """Train the run of one stage; ``None`` = it is there already.

    Raises:
        RunError: the stage was begun before, and nobody asked to resume it.
    """
    if (out / CARD_FILE).is_file() and resume:
        logger.info("stage %s: finished before", out.name)
        return None
    stage = replace(recipe, out=str(out), dense=config)
    made = wrap or (lambda experiment: _alone(experiment, config))
    done = _stage(out.name, lambda: train_run(stage, resume=resume and _started(out), wrap=made))
    # Everybody goes on to read what the main process has written.
    PartialState().wait_for_everyone()
    return done


def _stage(name: str, run: Callable[[], Any]) -> Any:
    logger.info("stage %s", name)
    return run()


def _started(out: Path) -> bool:
    return any((out / "checkpoints").glob("*"))


def report(out: str | Path) -> Table:
    """Return what each stage of a run came to, as a table: steps, CPU time and validation's figures."""
    folder = Path(out) / FOLDER
    table = Table("stage", "steps", "CPU-s", "validation", box=None, pad_edge=False)
    for run in (*sorted(folder.glob("[0-9]-*")), Path(out)):
        if (run / CARD_FILE).is_file():
            card = read_card(run)
            figure = f"NDCG@10 {best:.4f} (learnt score)" if (best := _best(run)) is not None else ""
            name = "out" if run == Path(out) else run.name
            table.add_row(name, str(card["steps"]), f"{card['cpu_seconds']:.0f}", figure)
        for path in sorted(run.glob("*.json")) if run.name == "2-ranker" else ():
            exam = json.loads(path.read_text(encoding="utf-8"))
            orders = f"NDCG@10 {exam['ranker_ndcg']:.4f} in its order, {exam['retriever_ndcg']:.4f} in the retriever's"
            table.add_row(f"2-ranker on {path.stem}", "", "", f"{orders}; AUC {exam['auc']:.3f}, ECE {exam['ece']:.4f}")
        if run.name == "3-lists":
            table.add_row(run.name, "", "", f"{len(list(run.glob('part-*')))} parts")
    return table


def _best(run: Path) -> float | None:
    """Return the best NDCG@10 that a run's log tells of."""
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line["evaluation"]["ndcg@10"] for line in lines if "ndcg@10" in line.get("evaluation", {})]
    return max(found, default=None)


def _alone(experiment: Experiment, config: DenseConfig) -> Task:
    assert isinstance(experiment.task, Retrieval)
    return DenseRetrieval(experiment.task, config)


def open_teachers(run: str | Path, recipe: Recipe, folder: Path | None = None) -> Teachers:
    """Open a retrieval run and a ranker, and hold the ranker against validation.

    Args:
        run: the retriever's folder.
        recipe: its ``dense.ranker`` is a ranking run, or null: the retriever's own score and its counted terms.
        folder: the report goes here; shards of the index too.

    Raises:
        RunError: the ranker prefers what nobody took.
    """
    assert recipe.dense is not None
    plan = MinerPlan(str(run), recipe.data, recipe.dense.ranker, recipe.dense.hard)
    experiment, miner = plan.open(None if folder is None else folder / f"shards-{Path(run).name}")
    ranker = Ranker(miner.judge.start)
    queries = experiment.dataset.histories().queries("valid")
    validation, exam = validation_lists(miner.retriever, miner.judge, queries, miner.depth, seed=recipe.seed)
    report = examine(ranker, exam)
    logger.info(
        "ranker on %d validation lists of %s: NDCG@10 %.4f in its order, %.4f in the retriever's; %.1f%% of targets "
        "found; AUC against random items %.3f, ECE %.4f",
        report.lists, Path(run).name, report.ranker_ndcg, report.retriever_ndcg, 100 * report.found, report.auc,
        report.ece,
    )  # fmt: skip
    if not report.is_better:
        logger.warning("the ranker orders no better than the retriever: what it denoises and teaches is noise")
    if folder is not None and PartialState().is_main_process:
        out = folder / "2-ranker"
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{Path(run).name}.json").write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    return Teachers(experiment, plan, miner, ranker, report, validation)


def mine(teachers: Teachers, config: HardConfig, folder: Path) -> Lists:
    """Return what ``teachers`` find and judge at every training position; ``folder`` keeps it."""
    if config.ray_workers and PartialState().is_main_process:
        mine_on_ray(teachers.plan, teachers.miner, folder, config.ray_workers)
    return teachers.miner.mine(folder)


def label(teachers: Teachers, config: DenseConfig, seed: int) -> PseudoLabels:
    """Return the pseudo labels that ``teachers`` give."""
    miner = teachers.miner
    return pseudo_label(
        miner.retriever, miner.judge, teachers.ranker, teachers.validation, config.pseudo, config.hard.depth, seed
    )


def taught(
    experiment: Experiment,
    config: DenseConfig,
    teachers: Teachers,
    lists: Lists,
    folder: Path,
    pseudo: PseudoLabels | None = None,
) -> Task:
    """Return an experiment's retrieval task, taught; to be handed to ``train_run`` as ``wrap``.

    Args:
        experiment: fresh.
        config: what is taught.
        teachers: whose lists they are.
        lists: of every training position.
        folder: the run's own; lists that are mined on the way go here.
        pseudo: pseudo labels.
    """
    task, found = experiment.task, teachers.experiment.task
    assert isinstance(task, Retrieval)
    assert isinstance(found, Retrieval)
    if not task.trains_backbone:  # the texts' vectors are the same: they need not be made twice
        task.catalogue.vectors, task.material.search_vectors = found.catalogue.vectors, found.material.search_vectors
    items = torch.from_numpy(teachers.miner.retriever.items) * teachers.miner.retriever.scale
    ranker = Ranker(teachers.miner.judge.start)
    ranker.load_state_dict(teachers.ranker.state_dict())

    def anew(epoch: int) -> Lists:
        if task.trains_backbone:  # the texts read otherwise by now
            task.catalogue.vectors = task.material.search_vectors = None
            task.encode(experiment.backbone)
        retriever = Retriever(task, experiment.backbone, config.hard.index)
        return Miner(retriever, teachers.miner.judge, config.hard.depth, f"epoch {epoch}").mine(
            folder / f"lists-{epoch}"
        )

    return DenseRetrieval(task, config, Lessons(lists, ranker, items, pseudo, anew))
