"""What `daguerre reconstruct` reports: sizes by hand, the same for every way, and images beside their numbers."""

import json
from pathlib import Path

import pytest
import torch

from daguerre.cli.main import main
from daguerre.errors import DaguerreError
from daguerre.evaluation.reconstruct import ReconstructConfig, in_bytes, run
from daguerre.training.objectives.perceptual import load_perceptual
from daguerre.training.options.first_stage import KLRecipe, VQVAERecipe
from daguerre.training.recipes.first_stage import build_network
from daguerre.weights import save_first_stage

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


def test_codes_take_their_logarithm_and_every_way_no_more(codes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["reconstruct", "shapes", "--model", str(codes), "--size", "32", "--count", "64", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["codes", "JPEG", "WebP"]
    sizes = [row["bits_per_pixel"] for row in report["rows"]]
    assert sizes[0] == pytest.approx(4 / 16)  # log₂ 16 bits a code, a code for 4×4 pixels
    assert all(0.5 * sizes[0] < size <= sizes[0] for size in sizes[1:])
    assert report["codes"]["bits per pixel"] <= sizes[0]
    assert report["eyes"] == "the embedded model's encoder"
    assert (tmp_path / "out" / "side-by-side.png").is_file()
    assert "| codes | 0.250 |" in capsys.readouterr().out


def test_a_continuous_latent_is_measured_as_bytes_and_as_it_is(latents: Path, codes: Path, tmp_path: Path):
    report = run(ReconstructConfig("shapes", str(latents), tmp_path, size=32, count=32, perceptual=(codes,)))
    rounded, exact, *_ = report.rows
    assert rounded.bits_per_pixel == pytest.approx(3 * 8 / 16)
    assert exact.bits_per_pixel is None
    assert rounded.psnr.value == pytest.approx(exact.psnr.value, abs=0.5)
    assert report.features == f"encoder {codes}"
    assert report.features_hash == load_perceptual((codes,)).key
    assert report.codes is None


def test_a_codec_without_a_file_so_small_is_left_out_and_named(codes: Path, tmp_path: Path):
    report = run(ReconstructConfig("shapes", str(codes), tmp_path, size=16, count=2))
    assert [row.name for row in report.rows] == ["codes"]
    assert "JPEG and WebP: no file" in report.markdown()


def test_bytes_are_evenly_spread():
    z = torch.linspace(-3, 5, 10_000)
    rounded = in_bytes(z)
    assert len(rounded.unique()) == 256
    assert (rounded - z).abs().max() <= 8 / 255 / 2 + 1e-6
    assert torch.equal(in_bytes(torch.full((4,), 2.0)), torch.full((4,), 2.0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 30}, "size is 30; for .* it must be a multiple of 4"),
        ({"count": 1}, "count is 1"),
        ({"data": "nowhere"}, "There is no folder 'nowhere'"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_told(codes: Path, tmp_path: Path, changes: dict[str, object], sentence: str):
    with pytest.raises(DaguerreError, match=sentence):
        run(ReconstructConfig(**{"data": "shapes", "model": str(codes), "out": tmp_path / "out", "size": 32, **changes}))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_overwritten(codes: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DaguerreError, match="holds no earlier reconstruction"):
        run(ReconstructConfig("shapes", str(codes), tmp_path, size=32))
