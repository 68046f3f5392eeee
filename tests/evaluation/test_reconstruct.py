"""The report of `daguerre reconstruct`: bits per pixel by hand, the same budget for every method."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daguerre.cli.main import main
from daguerre.data.images import to_tensor
from daguerre.errors import DaguerreError
from daguerre.evaluation.reconstruct import ReconstructConfig, round_to_8_bits, run
from daguerre.evaluation.reconstruct_models import run_models
from daguerre.metrics import psnr, ssim
from daguerre.training.objectives.perceptual import load_perceptual
from daguerre.training.options.first_stage import KLRecipe, VQVAERecipe
from daguerre.training.recipes.first_stage import build_network
from daguerre.weights import load_first_stage, save_first_stage
from daguerre.weights.tensors.safetensors import read_metadata, read_safetensors

TINY = {"data": "shapes", "resolution": 32, "f": 4, "base_channels": 8}


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = build_network(VQVAERecipe(**TINY, codebook_size=16, code_dim=4))
    torch.nn.init.normal_(network.quantize.get_parameter("embedding.weight"), std=0.3)
    return save_first_stage(network, tmp_path_factory.mktemp("first stages") / "codes", 32)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_first_stage(build_network(KLRecipe(**TINY, latent_channels=3)), tmp_path_factory.mktemp("first stages") / "latents", 32)


def test_codes_take_log2_bits_and_codecs_no_more(codes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        main(["reconstruct", "shapes", "--model", str(codes), "--resolution", "32", "--num-images", "64", "--out", str(tmp_path / "out")])
        == 0
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["codes", "JPEG", "WebP"]
    sizes = [row["bits_per_pixel"] for row in report["rows"]]
    assert sizes[0] == pytest.approx(4 / 16)  # log₂ 16 bits per code, one code per 4×4 pixels
    assert all(0.5 * sizes[0] < size <= sizes[0] for size in sizes[1:])
    assert report["codes"]["bits per pixel"] <= sizes[0]
    assert report["features"] == "the embedded model's encoder"
    assert (tmp_path / "out" / "side-by-side.png").is_file()
    assert "| codes | 0.250 |" in capsys.readouterr().out


def test_continuous_latents_are_measured_rounded_and_unrounded(latents: Path, codes: Path, tmp_path: Path):
    report = run(ReconstructConfig("shapes", (str(latents),), tmp_path, resolution=32, num_images=32, perceptual=(codes,)))
    rounded, exact, *_ = report.rows
    assert rounded.bits_per_pixel == pytest.approx(3 * 8 / 16)
    assert exact.bits_per_pixel is None
    assert rounded.psnr.value == pytest.approx(exact.psnr.value, abs=0.5)
    assert report.features == f"encoder {codes}"
    assert report.features_hash == load_perceptual((codes,)).key
    assert report.codes is None


def test_codecs_that_exceed_the_budget_are_listed(codes: Path, tmp_path: Path):
    report = run(ReconstructConfig("shapes", (str(codes),), tmp_path, resolution=16, num_images=2))
    assert [row.name for row in report.rows] == ["codes"]
    assert "JPEG and WebP: cannot encode" in report.markdown()


def test_one_image_has_no_distribution(codes: Path, tmp_path: Path):
    report = run(ReconstructConfig("shapes", (str(codes),), tmp_path, resolution=32, num_images=1))
    assert all(row.frechet is None and 0 < row.psnr.value < 99 for row in report.rows)
    assert report.markdown().splitlines()[6].endswith("| – |")


def test_a_model_is_found_by_its_name(tmp_path: Path):
    report = run(ReconstructConfig("shapes", ("emoji",), tmp_path, num_images=1))
    assert report.rows[0].name == "emoji, 8 bits per number"


def test_round_to_8_bits_is_uniform():
    z = torch.linspace(-3, 5, 10_000)
    rounded = round_to_8_bits(z)
    assert len(rounded.unique()) == 256
    assert (rounded - z).abs().max() <= 8 / 255 / 2 + 1e-6
    assert torch.equal(round_to_8_bits(torch.full((4,), 2.0)), torch.full((4,), 2.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 30}, "resolution is 30; for .* it must be a multiple of 4"),
        ({"num_images": 0}, "num_images is 0"),
        ({"data": "nowhere"}, "There is no directory 'nowhere'"),
        ({"model": ("nowhere",)}, "nowhere"),
        ({"model": ()}, "no model"),
    ],
)
def test_invalid_config_raises(codes: Path, tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(DaguerreError, match=message):
        run(ReconstructConfig(**{"data": "shapes", "model": (str(codes),), "out": tmp_path / "out", "resolution": 32, **changes}))
    assert not (tmp_path / "out").exists()


def test_other_folders_are_not_overwritten(codes: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DaguerreError, match="holds no reconstruction"):
        run(ReconstructConfig("shapes", (str(codes),), tmp_path, resolution=32))


def test_one_image_of_any_size_by_several_models(codes: Path, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (22, 37, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    out = tmp_path / "out"
    line = ["reconstruct", str(tmp_path / "a.png"), "--model", str(codes), str(latents), "--out", str(out)]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "# 1 image of" in printed
    assert "padded to 40×24 for codes" in printed
    report = json.loads((out / "report.json").read_text())
    first, second = report["rows"]
    assert (first["latent"], second["latent"]) == ("10×6 codes of 16", "3×6×10")
    assert first["bits_per_pixel"] == pytest.approx(60 * 4 / (22 * 37))
    assert second["bits_per_pixel"] == pytest.approx(180 * 8 / (22 * 37))
    x = to_tensor(image)[None]
    network = load_first_stage(latents)
    with torch.no_grad():
        padded = torch.nn.functional.pad(x, (0, 3, 0, 2), mode="replicate")
        y = network.decode(network.encode(padded))[..., :22, :37].clamp(-1, 1)
    assert second["psnr"] == pytest.approx(psnr(x, y).item(), abs=1e-4)
    assert second["ssim"] == pytest.approx(ssim(x, y).item(), abs=1e-5)
    assert Image.open(out / "side-by-side.png").width > 3 * 128


def test_the_latent_of_one_image_is_kept(codes: Path, latents: Path, tmp_path: Path):
    Image.new("RGB", (16, 8), "teal").save(tmp_path / "a.png")
    x = to_tensor(Image.open(tmp_path / "a.png"))[None]
    for model, suffix in ((codes, ".npy"), (latents, ".safetensors")):
        path = tmp_path / f"z{suffix}"
        run_models(ReconstructConfig(str(tmp_path / "a.png"), (str(model),), tmp_path / "out", path))
        network = load_first_stage(model)
        with torch.no_grad():
            if suffix == ".npy":
                assert np.array_equal(np.load(path), network.encode_codes(x).numpy())
            else:
                assert torch.equal(read_safetensors(path)["latent"], network.encode(x))
                assert read_metadata(path)["image_size"] == "16x8"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere --model emoji", "There is no image or folder 'nowhere'"),
        ("shapes --model emoji --latent z.npy", "one image by one model"),
        ("a.png --model emoji --latent z.txt", "ends in .safetensors or .npy"),
        ("broken.png --model emoji", "broken.png"),
    ],
)
def test_wrong_reconstructions_write_nothing(line: str, message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 8)).save("a.png")
    Path("broken.png").write_bytes(b"no image")
    assert main(["reconstruct", *line.split()]) in (1, 2)
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "broken.png"}
