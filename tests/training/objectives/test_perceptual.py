"""Perceptual distances: LPIPS under every published name, and a CLIP with and without normalization."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from daguerre.conditioning import train_tokenizer
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from daguerre.models.lpips import LPIPS, VisionFeatureMaps
from daguerre.training.objectives.perceptual import load_perceptual
from daguerre.weights import save_clip

SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # of VGG16's convolutions in the published files


def images(seed: int, side: int = 16) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    torch.manual_seed(0)
    network = LPIPS()
    for i in range(5):
        torch.nn.init.uniform_(network.get_parameter(f"lin{i}.model.1.weight"))
    return network


def test_lpips_loads_from_the_published_pair_of_files(lpips: LPIPS, tmp_path: Path):
    state = lpips.state_dict()
    vgg = {name: tensor for name, tensor in state.items() if name.startswith("features")}
    save_file(vgg | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.safetensors")
    save_file({name: tensor for name, tensor in state.items() if name.startswith("lin")}, tmp_path / "vgg.safetensors")
    loss = load_perceptual([tmp_path / "vgg16.safetensors", tmp_path / "vgg.safetensors"])
    assert loss.name == "LPIPS"
    x, y = images(1), images(2)
    assert torch.equal(loss.distance(x, y), lpips(x, y))
    assert loss.embed(x).shape == (2, 64 + 128 + 256 + 512 + 512)
    assert not any(parameter.requires_grad for parameter in loss.distance.parameters())
    with pytest.raises(DaguerreError, match="5 missing"):
        load_perceptual([tmp_path / "vgg16.safetensors"])


def test_lpips_loads_from_a_first_stages_checkpoint(lpips: LPIPS, tmp_path: Path):
    tensors = {}
    for name, tensor in lpips.state_dict().items():
        if name.startswith("features"):
            index = int(name.split(".")[1])
            number = next(i for i, indices in enumerate(SLICES, 1) if index in indices)
            name = name.replace("features", f"net.slice{number}")
        tensors[f"loss.perceptual_loss.{name}"] = tensor
    others = {"loss.perceptual_loss.scaling_layer.shift": torch.zeros(1, 3, 1, 1), "decoder.conv_out.weight": torch.zeros(3, 4, 3, 3)}
    save_file(tensors | others, tmp_path / "last.safetensors")
    x, y = images(3), images(4)
    assert torch.equal(load_perceptual([tmp_path / "last.safetensors"]).distance(x, y), lpips(x, y))


def clip_folder(folder: Path) -> tuple[CLIP, Path]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red apple"] * 4, vocab_size=520, max_length=8)
    text = CLIPTextConfig(len(tokenizer), length=8, width=32, layers=1, heads=2, mlp_width=64, projection=16, eos=tokenizer.eos)
    clip = CLIP(CLIPConfig(text, CLIPVisionConfig(16, 4, 3, 32, 2, 2, 64, "gelu", projection=16))).eval()
    return clip, save_clip(clip, tokenizer, folder)


def test_a_clip_compares_patches_at_any_image_size(tmp_path: Path):
    clip, folder = clip_folder(tmp_path / "clip")
    loss = load_perceptual([folder])
    assert loss.name == f"CLIP {folder}"
    x, y = images(5, side=32).requires_grad_(), images(6, side=32)
    distance = loss.distance(x, y)
    distance.sum().backward()
    assert (distance > 0).all()
    assert x.grad is not None
    assert x.grad.abs().min() > 0
    assert (loss.distance(y, y) == 0).all()
    maps = VisionFeatureMaps(clip.vision_model)(images(7))
    states, _ = clip.vision_model(images(7))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 4)] * 2
    assert torch.equal(maps[1][0, :, 2, 3], states[2][0, 1 + 2 * 4 + 3])  # the patch of row 2, column 3, after the class token


def test_the_normalization_of_a_published_clip_is_used(tmp_path: Path):
    _, folder = clip_folder(tmp_path / "clip")
    plain = load_perceptual([folder])
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.25, 0.25, 0.25]}))
    normalized = load_perceptual([folder])
    x = images(8)
    expected = (((x + 1) / 2 - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / 0.25).contiguous()
    torch.testing.assert_close(normalized.embed(x), plain.embed(expected))
    assert normalized.key == plain.key  # the same weights


@pytest.mark.parametrize("given", [[], ["a", "b", "c"], ["folder", "a"]])
def test_other_paths_are_refused(given: list[str], tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DaguerreError, match=r"the directory of a CLIP or an autoencoder, or one or two files"):
        load_perceptual([tmp_path / name for name in given])
