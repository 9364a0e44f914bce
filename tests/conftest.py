"""What all tests share: shapes checked at run time, and a tiny random backbone of every family."""

import copy
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from m6rec.backbones.base import Backbone

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Before anything of ours is imported: every jaxtyping signature of these packages is then checked at each call.
install_import_hook(
    ["m6rec.nn", "m6rec.backbones", "m6rec.tuners", "m6rec.late_interaction", "m6rec.text.batch"], "beartype.beartype"
)

WORDS = """the user clicked bought watched a product named red blue green soft warm winter summer shirt shoes book
film comedy drama lamp chair phone case ##s ##ed ##ing in at for with and then now ten hours ago is recommended"""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(autouse=True)
def _the_same_draws() -> None:
    """Begin every test at the same point of chance: one that fails, fails again."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_backbone() -> Callable[..., "Backbone"]:
    """Return ``make(model_type, attention="sdpa")``: a fresh tiny backbone with seeded random weights.

    ``model_type`` is one of ``bert gpt2 llama nextitnet qwen3 t5``. Two calls give equal weights and share nothing.
    """
    return make_tiny_backbone


def make_tiny_backbone(model_type: str, attention: str = "sdpa") -> "Backbone":
    from m6rec.backbones import BACKBONES
    from m6rec.backbones.anatomy import ANATOMIES

    model, tokenizer = copy.deepcopy(_tiny(model_type, attention))
    return BACKBONES.load(ANATOMIES[model_type].family)(model, tokenizer, f"tiny-{model_type}")


@cache
def _tiny(model_type: str, attention: str) -> tuple[Any, Any]:
    import torch
    import transformers

    import m6rec.backbones.nextitnet  # noqa: F401  (tells the library of the model type that is ours)
    from m6rec.backbones.anatomy import ANATOMIES

    tokenizer = tiny_tokenizer()
    config = transformers.AutoConfig.for_model(model_type, **_sizes(model_type, len(tokenizer)))
    auto = getattr(transformers, ANATOMIES[model_type].auto)
    chosen = {} if model_type == "nextitnet" else {"attn_implementation": attention}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config, **chosen)
        if model_type == "bert":
            model.pooler = None
        for parameter in model.parameters():  # the library's own start is so flat that a wrong mask would hardly show
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval(), tokenizer


def _sizes(model_type: str, vocabulary: int) -> dict[str, Any]:
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    common = {"vocab_size": vocabulary + 3, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    match model_type:
        case "bert":
            return {**common, "intermediate_size": 64, "max_position_embeddings": 96, "pad_token_id": 0}
        case "gpt2":
            return {"vocab_size": vocabulary, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 96, **ids}
        case "t5":
            sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
            return {"vocab_size": vocabulary + 3, **sizes, **ids, "decoder_start_token_id": 0}
        case "nextitnet":
            return {"vocab_size": vocabulary, "hidden_size": 32, "dilations": [1, 2]}
        case _:
            grouped = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96}
            return {**common, **grouped, "intermediate_size": 64, **ids}


def tiny_tokenizer() -> Any:
    """Return a WordPiece tokenizer over a few dozen words and all ASCII letters, built without any file."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = list(dict.fromkeys([*SPECIAL, *WORDS.split(), *letters, *(f"##{letter}" for letter in letters)]))
    inner = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    special = {f"{name}_token": token for name, token in {**names, "bos": "[CLS]", "eos": "[SEP]"}.items()}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny BERT with its tokenizer, as ``save_pretrained`` writes them: the ``backbone.name`` of a recipe."""
    import torch
    import transformers

    tokenizer = tiny_tokenizer()
    sizes = {**_sizes("bert", len(tokenizer)), "max_position_embeddings": 192}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("backbone")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the dataset folder of a little shop: 60 users, 36 goods, searches, ratings."""
    from tests.little_shop import prepare_shop, shop_events

    return prepare_shop(tmp_path_factory.mktemp("shop"), shop_events())


@pytest.fixture(scope="session")
def retrieval_run(shop: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished retrieval run on the little shop; read only."""
    return _trained("retrieval", shop, tiny_folder, tmp_path_factory)


@pytest.fixture(scope="session")
def ranking_run(shop: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished ranking run on the little shop (4 stars are a yes); read only."""
    return _trained("ranking", shop, tiny_folder, tmp_path_factory)


def _trained(task: str, shop: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from m6rec.assemble import train_run
    from m6rec.recipe import read_recipe
    from tests.little_shop import SMALL

    out = tmp_path_factory.mktemp("runs") / task
    train_run(read_recipe(task, [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *SMALL[task]]))
    return out


# Words that make `pretrain-small` small enough for a test.
PRETRAINED = [
    "backbone.shape.vocabulary=500",
    "backbone.shape.hidden_size=32",
    "backbone.shape.num_layers=2",
    "backbone.shape.feed_forward=64",
    "task.row_tokens=96",
    "training.batch_size=8",
    "training.lr=1e-2",
]


@pytest.fixture(scope="session")
def pretrained(little_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return ``run(model_type)``: a tiny ``llama``, ``bert`` or ``t5`` pretrained on the little world; read only."""

    @cache
    def run(model_type: str) -> Path:
        from m6rec.assemble import train_run
        from m6rec.recipe import read_recipe

        out = tmp_path_factory.mktemp("pretrained") / model_type
        words = [f"data={little_world}", f"out={out}", f"backbone.shape.model_type={model_type}", *PRETRAINED]
        train_run(read_recipe("pretrain-small", [*words, "training.max_steps=30"]))
        return out

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Any:
    """Return a running stand-in for the Hub, which the real client talks to; ``me/tiny`` is the little runs' base."""
    from tests.hub_server import WRITE, HubServer, Model, connect

    server = HubServer()
    connect(server, monkeypatch, tmp_path_factory.mktemp("hub"), token=WRITE)
    server.models["me/tiny"] = Model()
    server.models["me/tiny"].add({path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    yield server
    server.close()


@pytest.fixture(scope="session")
def little_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the dataset folder of a small sample world: 150 users, 300 items."""
    from m6rec.data.prepare import prepare
    from m6rec.data.sources.world import World, WorldConfig

    folder = tmp_path_factory.mktemp("world") / "data"
    prepare(World(WorldConfig(users=150, items=300, dialogues=40)), folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets (``M6REC_TEST_DATA``, or ``shared/data`` beside the checkout), or skip."""
    folder = Path(os.environ.get("M6REC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data here; set M6REC_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a small Ray on this machine, two workers at most, and stop it at the end; skip without Ray."""
    ray = pytest.importorskip("ray")
    root = str(Path(__file__).parent.parent)
    ray.init(
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}},
    )
    yield ray
    ray.shutdown()
