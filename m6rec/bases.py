"""The model under a run: a published one, the embedded one, or one that the run itself makes before it trains.

A model that a run makes lies in its folder (``base/``), a model that it pretrained in full beside it (``model/``). This
module knows no tuner and no loop.
"""

import itertools
from pathlib import Path

from m6rec.backbones.base import Backbone
from m6rec.backbones.create import create_model, keep_layers, prune_model, save_backbone
from m6rec.backbones.resolve import resolve_backbone
from m6rec.recipe import Recipe, plugin
from m6rec.runs import BASE_FOLDER
from m6rec.tasks.base import Material
from m6rec.tasks.pretraining.corpus import Corpus
from m6rec.tasks.pretraining.task import Pretraining

# More text than this moves neither the pieces of a small vocabulary nor the words in use by much.
TOKENIZER_TEXTS = 100_000


def make_base(recipe: Recipe, material: Material) -> None:
    """Write the model that a recipe wants made (``name=new``, ``vocabulary=used``, ``layers=N``) into the run's folder.

    Raises:
        DataError: there is no text to make a vocabulary from.
        ConfigError: more layers than the pretrained model has.
        BackboneError: a vocabulary, or a stack of layers, that cannot be cut.
    """
    if not recipe.backbone.is_made:
        return
    texts = itertools.islice(_corpus(recipe, material).texts(), TOKENIZER_TEXTS)
    folder = Path(recipe.out) / BASE_FOLDER
    if recipe.backbone.name == "new":
        create_model(recipe.backbone.shape, texts, folder, recipe.seed)
        return
    backbone = resolve_backbone(recipe.backbone.name, recipe.backbone.revision)
    if recipe.backbone.layers is not None:
        keep_layers(backbone, recipe.backbone.layers)
    if recipe.backbone.vocabulary == "used":
        prune_model(backbone, texts, folder)
    else:
        save_backbone(backbone, folder)


def base_backbone(recipe: Recipe, folder: Path) -> Backbone:
    """Return the bare backbone of a run.

    Args:
        recipe: as it was trained.
        folder: the run's.

    Raises:
        BackboneError: it cannot be had.
    """
    if recipe.backbone.is_made:
        return resolve_backbone(folder / BASE_FOLDER)
    return resolve_backbone(recipe.backbone.name, recipe.backbone.revision)


def _corpus(recipe: Recipe, material: Material) -> Corpus:
    """Return the text that the vocabulary is of: what pretraining reads, whatever the task."""
    kind, config = plugin("task", recipe.task)
    config = config if issubclass(kind, Pretraining) else Pretraining.Config()
    return Pretraining.corpus(config, material)
