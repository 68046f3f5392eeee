"""Tuning the decoder alone: the pictures come nearer, the latents stay as they were, and so does every other byte of the model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import daguerre
from daguerre.data import BatchLoader, ShapesDataset
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.lineage_options import DecoderRecipe, VQVAERecipe
from daguerre.training.loop import LoopConfig
from daguerre.training.recipes.decoder import run
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


def test_a_models_latents_and_all_its_other_bytes_stay(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
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


def test_a_codebook_model_keeps_its_codes(tmp_path: Path):
    torch.manual_seed(0)
    network = build_network(VQVAERecipe("shapes", resolution=16, f=2, width=8, codebook_size=16, code_width=4)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = run(DecoderRecipe("shapes", str(save_first_stage(network, tmp_path / "vq", 16)), tmp_path / "out", resolution=16, loop=LOOP))
    after = load_first_stage(result).state_dict()
    assert {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])} == {"decoder"}


def test_one_picture_in_ten_of_a_folder_is_kept_for_measuring(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "pictures").mkdir()
    for i in range(20):
        Image.new("RGB", (32, 32), (12 * i, 100, 200)).save(tmp_path / "pictures" / f"{i}.png")
    run(DecoderRecipe(str(tmp_path / "pictures"), str(model), tmp_path / "out", resolution=32, loop=LOOP))
    assert "PSNR of 2 pictures not trained on" in capsys.readouterr().out


def test_a_size_that_does_not_divide_is_told(model: Path, tmp_path: Path):
    with pytest.raises(DaguerreError, match=r"size is 18; for .* it must be a multiple of 4"):
        run(DecoderRecipe("shapes", str(model), tmp_path, resolution=18, loop=LOOP))
