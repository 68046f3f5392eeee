"""`daguerre evaluate` on folders: distances with known answers, CLIP scores, the loss of a model, and the search for a scorer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daguerre.conditioning import train_tokenizer
from daguerre.data import FolderDataset, to_tensor
from daguerre.errors import DaguerreError
from daguerre.evaluation import folders, held_out
from daguerre.evaluation.clip_scorer import load_clip_scorer
from daguerre.evaluation.config import EvaluateConfig
from daguerre.evaluation.folders import BlockStore, FolderComparison, InceptionEmbedder, compare_features, run_folders, score_captions
from daguerre.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from daguerre.models.latent_prior import LatentPrior
from daguerre.weights import save_clip


def write(folder: Path, colours: list[tuple[int, int, int]], captions: bool = False) -> Path:
    folder.mkdir()
    for i, colour in enumerate(colours):
        Image.new("RGB", (20, 16), colour).save(folder / f"{i:03d}.png")
        if captions:
            (folder / f"{i:03d}.txt").write_text(f"colour {i}")
    return folder


class MeanColour(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))

    def class_logits(self, features: torch.Tensor) -> torch.Tensor:
        return features


def compare_folders(embed: InceptionEmbedder, x: FolderDataset, y: FolderDataset) -> FolderComparison:
    return compare_features(embed, *(folders._embed(embed, source, BlockStore()) for source in (x, y)))


def test_the_distance_of_two_folders_has_the_known_value(tmp_path: Path):
    """Equal spread and means that differ by 51 bytes in one channel: d² = (2·51/255)² = 0.16."""
    base = np.random.default_rng(0).integers(0, 200, (40, 3))
    one = write(tmp_path / "one", [tuple(c) for c in base.tolist()])
    other = write(tmp_path / "other", [tuple(c) for c in (base + np.array([51, 0, 0])).tolist()])
    embed = InceptionEmbedder(MeanColour(), "colours")  # pyright: ignore[reportArgumentType]
    x, y = (FolderDataset(folder, 16, captioned=False) for folder in (one, other))
    found = compare_folders(embed, x, y)
    assert found.frechet == pytest.approx(0.16, abs=1e-5)
    assert found.kid is not None
    assert found.halves_frechet is not None
    assert compare_folders(embed, x, x).frechet == pytest.approx(0, abs=1e-5)
    assert (found.images, found.reference) == (40, 40)
    with pytest.raises(DaguerreError, match="only one image"):
        compare_folders(embed, FolderDataset(write(tmp_path / "single", [(1, 2, 3)]), 16, captioned=False), y)


def test_the_report_names_what_was_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, other = (write(tmp_path / name, [(i, 9 * i, 30) for i in range(4)], captions=True) for name in ("one", "other"))
    monkeypatch.setattr(folders, "load_inception", lambda _file: MeanColour())
    config = EvaluateConfig(images=one, data=str(other), features=tmp_path / "weights.pth", out=tmp_path / "out")
    report = run_folders(config)
    assert "Inception (weights.pth)" in report.markdown()
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["comparison"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert saved["clip_score"] is None
    with pytest.raises(DaguerreError, match="Nothing to measure"):
        run_folders(EvaluateConfig(images=one, out=tmp_path / "other-out"))
    for wrong in ({"images": one, "data": "emoji"}, {"features": one}, {"images": one, "model": "x"}):
        with pytest.raises(DaguerreError, match="--"):
            EvaluateConfig(**wrong)


def test_shares_of_a_cache_give_the_report_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also after a process was killed in the middle: what exists is not computed again."""
    colours = np.random.default_rng(0).integers(0, 256, (11, 3)).tolist()
    one, other = (write(tmp_path / name, [tuple(c) for c in part], captions=True) for name, part in (("a", colours), ("b", colours[::-1])))
    monkeypatch.setattr(folders, "load_inception", lambda _file: MeanColour())
    monkeypatch.setattr(folders, "BLOCK", 4)
    options = {"images": one, "data": str(other), "features": tmp_path / "weights.pth"}
    whole = run_folders(EvaluateConfig(**options, out=tmp_path / "whole"))
    assert whole is not None
    cache = {"cache": tmp_path / "cache", "out": tmp_path / "parts"}
    assert run_folders(EvaluateConfig(**options, **cache, shard="1/2")) is None
    assert not (tmp_path / "parts").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 2  # block 1 of the 3 of each folder
    assert run_folders(EvaluateConfig(**options, **cache, shard="0/2")) == whole
    monkeypatch.setattr(MeanColour, "forward", lambda *_: pytest.fail("computed again"))
    assert run_folders(EvaluateConfig(**options, **cache)) == whole
    (one / "000.png").write_bytes((other / "001.png").read_bytes())
    with pytest.raises(pytest.fail.Exception):
        run_folders(EvaluateConfig(**options, **cache))


def test_statistics_of_other_tools_are_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = write(tmp_path / "images", [(9 * i, 5 * i, 200 - i * i) for i in range(9)])
    monkeypatch.setattr(folders, "load_inception", lambda _file: MeanColour())
    features = np.array([[9 * i, 5 * i, 200 - i * i] for i in range(9)]) / 127.5 - 1
    np.savez(tmp_path / "reference.npz", mu=features.mean(0) + np.array([0.5, 0, 0]), sigma=np.cov(features, rowvar=False))
    config = EvaluateConfig(images=images, data=str(tmp_path / "reference.npz"), features=tmp_path / "w.pth", out=tmp_path / "out")
    report = run_folders(config)
    assert report is not None
    assert report.comparison is not None
    assert (report.comparison.reference, report.comparison.kid) == (None, None)
    assert report.comparison.frechet == pytest.approx(0.25, abs=1e-5)
    with np.load(tmp_path / "out" / "statistics.npz") as written:
        assert np.allclose(written["sigma"], np.cov(features, rowvar=False), atol=1e-6)
    np.savez(tmp_path / "other.npz", mean=features)
    with pytest.raises(DaguerreError, match="the arrays mu and sigma"):
        run_folders(EvaluateConfig(images=images, data=str(tmp_path / "other.npz"), features=tmp_path / "w.pth", out=tmp_path / "out"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red apple", "a cat", "colour 0 1 2 3"], 514, 8)
    text = CLIPTextConfig(len(tokenizer), 8, 16, 1, 1, 32, "gelu", projection=8, eos=tokenizer.eos)
    network = CLIP(CLIPConfig(text, CLIPVisionConfig(16, 8, 3, 16, 1, 1, 32, "gelu", projection=8)))
    return save_clip(network, tokenizer, tmp_path_factory.mktemp("clip") / "model")


def test_captions_are_scored_by_the_cosine(clip: Path, tmp_path: Path):
    source = FolderDataset(write(tmp_path / "images", [(10 * i, 99, 7) for i in range(20)], captions=True), 16)
    scorer = load_clip_scorer(clip)
    x = torch.stack([to_tensor(Image.new("RGB", (16, 16), (10 * i, 99, 7))) for i in range(20)])
    cosines = torch.nn.functional.cosine_similarity(scorer.embed_images(x), scorer.embed_texts([f"colour {i}" for i in range(20)]))
    assert torch.allclose(torch.cat([*score_captions(scorer, source, BlockStore()).parts()]).float(), 2.5 * cosines.clamp(min=0), atol=1e-5)
    report = run_folders(EvaluateConfig(images=tmp_path / "images", scorer=clip, out=tmp_path / "out"))
    assert report.captioned == 20
    assert "CLIP score of 20 images" in report.markdown()
    bare = write(tmp_path / "bare", [(1, 1, 1)] * 2)
    with pytest.raises(DaguerreError, match=r"No image in .* has a caption"):
        run_folders(EvaluateConfig(images=bare, scorer=clip, out=tmp_path / "bare-out"))


def test_a_published_clip_gets_normalized_images(clip: Path, tmp_path: Path):
    (tmp_path / "published").mkdir()
    for file in clip.iterdir():
        (tmp_path / "published" / file.name).write_bytes(file.read_bytes())
    mean, std = [0.5, 0.25, 0.75], [0.5, 0.2, 0.1]
    (tmp_path / "published" / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    published, own = load_clip_scorer(tmp_path / "published"), load_clip_scorer(clip)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    by_hand = ((x + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(published.embed_images(x), own.clip.embed_image(by_hand).detach(), atol=1e-6)
    assert not torch.allclose(published.embed_images(x), own.embed_images(x), atol=1e-3)


@torch.no_grad()
def test_the_loss_of_a_perfect_model_is_zero_and_each_image_keeps_its_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = FolderDataset(write(tmp_path / "images", [(10 * i, 50, 60) for i in range(5)], captions=True), 8)

    class Zero:
        """Predicts no noise, so its loss is the mean square of the noise."""

        prediction, name, sample_size, device = "epsilon", "zero", 8, torch.device("cpu")

        class schedule:  # noqa: N801
            alphas_cumprod = torch.linspace(0.99, 0.01, 50, dtype=torch.float64)

        class autoencoder:  # noqa: N801
            encode = staticmethod(lambda x: x)

        conditioner = staticmethod(lambda captions: captions)
        unet = staticmethod(lambda x, t, condition: torch.zeros_like(x))

    class AnyConditioner:
        def encode_captions(self, captions):
            return captions

    model = Zero()
    model.conditioner = AnyConditioner()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(held_out, "Conditioner", AnyConditioner)
    whole = held_out.diffusion_loss(model, source, 3)  # pyright: ignore[reportArgumentType]
    assert whole.shape == (5, held_out.TIMESTEP_LEVELS)
    assert abs(float(whole.mean()) - 1) < 5 * (2 / (whole.numel() * 3 * 64)) ** 0.5  # the mean of squared standard normals
    parts = [held_out.diffusion_loss(model, source.part([item]), 3) for item in source.items]  # pyright: ignore[reportArgumentType]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(held_out.diffusion_loss(model, source, 4), whole)  # pyright: ignore[reportArgumentType]
    noise = torch.stack([held_out._noise(item.digest, 3, torch.Size((3, 8, 8))) for item in source.items])
    assert torch.allclose(whole, noise.square().mean(dim=(2, 3, 4)), atol=1e-6)


def test_a_prior_is_measured_by_its_code_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from daguerre.conditioning.prior_prefix import EmptyPrefix
    from daguerre.metrics import bootstrap
    from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
    from daguerre.models.vector_quantizer import QuantizerConfig
    from daguerre.models.vq_model import VQModel, VQModelConfig
    from daguerre.training.objectives.prior import CodeBatch, code_lengths

    torch.manual_seed(0)
    shape = {"blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": 2}
    stage = VQModel(VQModelConfig(QuantizerConfig(codes=8, width=4), latent_channels=4, channels=(4, 8), **shape)).eval()
    model = LatentPrior(PixelCNN(PixelCNNConfig(8, layers=1, width=8)).eval(), stage, EmptyPrefix(), "tiny", 16)
    monkeypatch.setattr(held_out, "load", lambda _name: model)
    folder = write(tmp_path / "images", [(40 * i, 50, 60) for i in range(5)])
    report = held_out.run_held_out(EvaluateConfig(data=str(folder), out=tmp_path / "out"))
    x = torch.stack([to_tensor(Image.new("RGB", (16, 16), (40 * i, 50, 60))) for i in range(5)])
    with torch.no_grad():
        expected = bootstrap(code_lengths(model.prior, CodeBatch(stage.encode_codes(x))))
    assert report.value.value == pytest.approx(expected.value, abs=1e-5)
    assert "bits per code" in report.markdown()
