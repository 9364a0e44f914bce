"""What we save is PEFT's own: plain ``peft`` loads it and gives the same outputs."""

import copy
import json
from pathlib import Path

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.tuners import TUNERS
from tests.contracts.backbone_contract import close, plain_batch, stack
from tests.contracts.tuner_contract import states, train_step, tree

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*cannot merge the BEFT adapter:UserWarning"),
]

SOURCE, SHORT, TARGET = [7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22]


def trained_adapter(name: str, backbone: Backbone, folder: Path) -> tuple[Backbone, torch.nn.Module]:
    """Train and save an adapter; return our tuned backbone and the bare model with plain PEFT's reading of it."""
    import peft

    bare = copy.deepcopy(backbone.model)
    tuner = TUNERS.load(name)()
    tuned = tuner.attach(backbone)
    train_step(tuner, tuned, tree(backbone))
    tuner.save(folder)
    return tuned, peft.PeftModel.from_pretrained(bare, folder).eval()


@pytest.mark.parametrize("name", ["lora", "ia3", "ln-tuning", "bitfit", "prompt", "p-tuning", "prefix"])
class TestPlainPeft:
    def test_encoder(self, tiny_backbone, tmp_path: Path, name: str) -> None:
        tuned, plain = trained_adapter(name, tiny_backbone("bert"), tmp_path)
        batch = stack(plain_batch(SOURCE), plain_batch(SHORT))
        with torch.no_grad():
            theirs = plain(input_ids=batch.ids, attention_mask=batch.keep.long()).last_hidden_state
        close(states(tuned, batch)[batch.keep], theirs[:, -len(SOURCE) :][batch.keep])

    @pytest.mark.parametrize("model_type", ["gpt2", "qwen3"])
    def test_decoder(self, tiny_backbone, tmp_path: Path, name: str, model_type: str) -> None:
        if (name, model_type) == ("bitfit", "gpt2"):
            pytest.skip("refused on GPT-2")
        tuned, plain = trained_adapter(name, tiny_backbone(model_type), tmp_path)
        batch = stack(plain_batch(SOURCE), plain_batch(SHORT))
        with torch.no_grad():
            theirs = plain(input_ids=batch.ids, attention_mask=batch.keep.long()).logits
            ours = tuned.logits(tuned(batch))
        words = len(tuned.tokenizer) - 4
        close(ours[batch.keep][:, :words], theirs[:, -len(SOURCE) :][batch.keep][:, :words])

    def test_encoder_decoder(self, tiny_backbone, tmp_path: Path, name: str) -> None:
        if name == "prefix":
            pytest.skip("refused on T5")
        tuned, plain = trained_adapter(name, tiny_backbone("t5"), tmp_path)
        source, target = torch.tensor([SOURCE]), torch.tensor([TARGET])
        with torch.no_grad():
            theirs = plain(input_ids=source, attention_mask=source > 0, decoder_input_ids=target).logits
            ours = tuned.logits(tuned(plain_batch(SOURCE, TARGET))[:, len(SOURCE) :])
        words = len(tuned.tokenizer) - 4
        close(ours[..., :words], theirs[..., :words])


def test_the_folder_names_the_base_model_and_no_path_of_this_machine(tiny_backbone, tmp_path: Path) -> None:
    backbone = tiny_backbone("bert")
    backbone.model.name_or_path = backbone.model.config._name_or_path = "sentence-transformers/all-MiniLM-L6-v2"
    tuner = TUNERS.load("lora")()
    tuner.attach(backbone)
    tuner.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "control_tokens.safetensors",
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "FEATURE_EXTRACTION")
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
