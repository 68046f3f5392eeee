"""What a checkpoint says of itself, as JSON and as text."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from daguerre.errors import DaguerreError
from daguerre.weights.convert import convert
from daguerre.weights.inspect import inspect
from tests.weights import checkpoints


def test_a_whole_file_says_all_that_can_be_known_from_its_header(tmp_path):
    tensors = checkpoints.with_ema({name: tensor.half() for name, tensor in checkpoints.sdxl().items()})
    path = checkpoints.write(tmp_path / "x.safetensors", tensors, **{"modelspec.title": "Mine"})
    report = json.loads(inspect(path).json())
    assert (report["family"], report["task"], report["container"], report["dtype"]) == ("sdxl", "text-to-image", "safetensors", "float16")
    assert (report["prediction_type"], report["prediction_from"]) == ("epsilon", "the family sdxl")
    assert report["parts"].keys() == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert report["parts"]["text_encoder_2"] | {"parameters": 0} == {
        "network": "open_clip_text",
        "dtype": "float16",
        "parameters": 0,
        "tensors": 41,
    }
    assert sum(part["parameters"] for part in report["parts"].values()) <= report["parameters"] == sum(t.numel() for t in tensors.values())
    assert (report["ema"], report["metadata"]) == ("unused", {"modelspec.title": "Mine"})
    assert report["unmatched_keys"] == report["missing_keys"] == report["wrong_shapes"] == []
    assert report["bytes"] == path.stat().st_size
    assert (report["question"], report["sha256"]) == (None, {})


def test_what_does_not_fit_is_listed(tmp_path):
    tensors = checkpoints.sd1()
    del tensors["model.diffusion_model.out.2.bias"]
    tensors |= {"sundry": torch.ones(1), "first_stage_model.quant_conv.bias": torch.ones(9)}
    report = inspect(checkpoints.write(tmp_path / "x.safetensors", tensors))
    assert report.missing_keys == ["unet/conv_out.bias"]
    assert report.unmatched_keys == ["sundry"]
    assert report.wrong_shapes == ["vae/quant_conv.bias is [9], expected [8]"]
    assert {"missing          unet/conv_out.bias", "unmatched        sundry"} <= set(report.lines())


def test_what_has_to_be_asked_is_asked(tmp_path):
    report = inspect(checkpoints.write(tmp_path / "x.safetensors", checkpoints.sd2()))
    assert report.prediction_type is None
    assert "Does it predict v" in (report.question or "")
    odd = checkpoints.replace(checkpoints.SD2, channels=(32, 96), heads=(1, 1))
    report = inspect(checkpoints.write(tmp_path / "y.safetensors", checkpoints.sd2(odd)))
    assert "give heads=" in (report.question or "")


def test_a_hash_is_the_files(tmp_path):
    path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.autoencoder())
    assert inspect(path, hashed=True).sha256 == {"x.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_folder_is_told_like_a_file(tmp_path):
    folder = convert(checkpoints.write(tmp_path / "x.safetensors", checkpoints.sdxl()), tmp_path / "folder", dtype=torch.bfloat16)
    report = inspect(folder, hashed=True)
    assert (report.family, report.container, report.dtype, report.prediction_from) == (
        "sdxl",
        "folder",
        "bfloat16",
        "the scheduler's config",
    )
    assert report.sha256.keys() == {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")} | {
        f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2")
    }
    alone = inspect(folder / "vae")
    assert (alone.family, alone.parts.keys()) == ("autoencoder", {"vae"})


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("lora", "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
        ("lora", "unet.down_blocks.0.attentions.0.to_q.lora_A.weight"),
        ("lora", "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a"),
        ("controlnet", "control_model.zero_convs.0.0.weight"),
        ("controlnet", "controlnet_cond_embedding.conv_in.weight"),
        ("textual-inversion", "emb_params"),
        ("textual-inversion", "clip_g"),
        ("unknown", "sundry"),
    ],
)
def test_what_lies_beside_checkpoints_is_recognised(tmp_path, family, name):
    report = inspect(checkpoints.write(tmp_path / "x.safetensors", {name: torch.ones(2, 2)}))
    assert report.family == family
    assert bool(report.unmatched_keys) == (family == "unknown")


def test_an_unsupported_model_is_named(tmp_path):
    path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.sdxl() | {"edm_mean": torch.zeros(1)})
    report = inspect(path)
    assert (report.family, report.question, report.unmatched_keys) == ("unsupported", None, [])
    assert any("Playground 2.5" in line for line in report.lines())


def test_an_embedded_model_is_inspected_by_its_name():
    assert inspect("emoji").family == "sd1"


def test_a_pickled_embedding_is_recognised(tmp_path):
    torch.save(
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "cat"}, tmp_path / "cat.pt"
    )
    report = inspect(tmp_path / "cat.pt")
    assert (report.family, report.container, report.metadata) == ("textual-inversion", "pickle", {"name": "cat"})


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    with pytest.raises(DaguerreError, match="neither a safetensors file nor"):
        inspect(tmp_path / "x.png")
