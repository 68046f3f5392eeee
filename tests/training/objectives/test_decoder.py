"""Training decoders. The model's own: the PSNR rises, and every other byte stays the same. A tiny one: it learns the own one's images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import daguerre
from daguerre.data import BatchLoader, ShapesDataset
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.config import LoopConfig
from daguerre.training.options.decoder import DecoderRecipe, TinyDecoderRecipe
from daguerre.training.options.first_stage import VQVAERecipe
from daguerre.training.recipes.decoder import run, run_tiny
from daguerre.training.recipes.first_stage import build_network
from daguerre.weights import load_first_stage, save, save_first_stage
from daguerre.weights.tensors.safetensors import read_safetensors

LOOP = LoopConfig(
    max_train_steps=12,
    batch_size=4,
    learning_rate=1e-3,
    lr_warmup_steps=1,
    ema_decay=0.0,
    log_every=6,
    sample_every=12,
    checkpoint_every=12,
)


@pytest.fixture(scope="module")
def model(make_tiny_model: Callable[..., LatentDiffusion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_tiny_model(), tmp_path_factory.mktemp("model") / "tiny", dtype=torch.float16)


def test_only_the_decoders_tensors_change(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = run(DecoderRecipe("shapes", str(model), tmp_path, resolution=32, loop=LOOP))
    files = {path.relative_to(model) for path in model.rglob("*") if path.is_file()}
    assert files == {path.relative_to(result) for path in result.rglob("*") if path.is_file()}
    weights = Path("vae", "diffusion_pytorch_model.safetensors")
    assert all((model / file).read_bytes() == (result / file).read_bytes() for file in files - {weights})
    before, after = read_safetensors(model / weights), read_safetensors(result / weights)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    x = BatchLoader(ShapesDataset(32), 4, seed=5).batch(0).x
    with torch.no_grad():
        assert torch.equal(load_first_stage(model).encode(x), load_first_stage(result).encode(x))
    words = capsys.readouterr().out.split()
    assert float(words[words.index("after") - 2]) > float(words[words.index("before,") - 2])
    assert daguerre.load(result).sample_size == 32


def test_only_the_decoder_of_a_vq_vae_changes(tmp_path: Path):
    torch.manual_seed(0)
    network = build_network(VQVAERecipe("shapes", resolution=16, f=2, base_channels=8, codebook_size=16, code_dim=4)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = run(DecoderRecipe("shapes", str(save_first_stage(network, tmp_path / "vq", 16)), tmp_path / "out", resolution=16, loop=LOOP))
    after = load_first_stage(result).state_dict()
    assert {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])} == {"decoder"}


def test_one_image_in_ten_of_a_folder_is_held_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "images").mkdir()
    for i in range(20):
        Image.new("RGB", (32, 32), (12 * i, 100, 200)).save(tmp_path / "images" / f"{i}.png")
    run(DecoderRecipe(str(tmp_path / "images"), str(model), tmp_path / "out", resolution=32, loop=LOOP))
    assert "PSNR of 2 held-out images" in capsys.readouterr().out


def test_a_resolution_that_does_not_fit_is_refused(model: Path, tmp_path: Path):
    with pytest.raises(DaguerreError, match=r"resolution is 18; for .* it must be a multiple of 4"):
        run(DecoderRecipe("shapes", str(model), tmp_path, resolution=18, loop=LOOP))


def test_a_tiny_decoder_learns_the_images_of_the_models_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = []
    for steps in (1, 60):
        recipe = TinyDecoderRecipe(
            "shapes",
            str(model),
            tmp_path / str(steps),
            resolution=16,
            width=8,
            blocks=1,
            loop=replace(LOOP, max_train_steps=steps, learning_rate=3e-3),
        )
        file = run_tiny(recipe)
        words = capsys.readouterr().out.split()
        found.append(float(words[words.index("dB;") - 1]))
    assert found[1] > found[0] + 1
    loaded = daguerre.load(model, vae=file)
    z = torch.randn(1, 6, 4, 4)
    with torch.no_grad():
        assert loaded.autoencoder.decode(z).shape == (1, 3, 16, 16)
    with Image.open(file.with_name("comparison.png")) as image:
        assert image.width > 8 * 16
