"""The experiments of the VQGAN paper in small, on drawn shapes of 32 pixels (Esser et al. 2021, arXiv:2012.09841, sections 4.1 to 4.4).

    python -m benchmarks.vqgan [--minutes 60] [--seeds 2] [--workers 2] [--work runs/vqgan] [--out benchmarks/vqgan.md]

Every network is trained once for each seed, which draws its first weights and the order of its images; images, maps and the classifier are
the same for all. `--minutes` are of processor time for the trainings of all seeds together, each on one thread, so that a busy machine
changes nothing but the wait: with all that is measured, the default should take under 45 minutes of two free cores. Everything trained or
measured is kept in `--work`, so that a run that was stopped goes on.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.vqgan_page import DEFAULT, page
from daguerre.data import Batch, ShapesDataset, ShapesMix
from daguerre.data.condition_maps import shapes_map
from daguerre.data.images import to_image, to_tensor
from daguerre.data.shapes import COLOURS, SHAPES
from daguerre.errors import DaguerreError
from daguerre.metrics import bootstrap, frechet_distance, proportion, psnr, ssim
from daguerre.models.autoregressive import uniform_noise
from daguerre.models.latent_prior import Prior
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import AutoencoderLoss
from daguerre.training.objectives.prior import CodeBatch, CodeBatches, PriorTask, code_lengths
from daguerre.training.objectives.vae_vq import QuantizedTask
from daguerre.weights.tensors.safetensors import save_safetensors

SIZE, CODES, SEED = 32, 128, 0  # the seed of the images; those of the trainings are 0, 1, …
MIX = ShapesMix(count=0, pair=0, background=0.5)  # one shape in each image, so that what it should be is known
TRAINED, TESTED, DRAWN = 16000, 500, 128  # images
REDRAWS = 300  # of a bootstrap of Fréchet distances
CHANNELS = (16, 32, 64, 64)  # from full resolution down
ENTERS = 150  # steps before the codebook takes part
RATE, PRIOR_RATE = 2e-3, 4e-3
LEVELS = 4  # of each colour channel, where pixels are quantized to 4³ colours
TRANSFORMER = {"width": 96, "layers": 3, "heads": 4}
SNAIL = {"width": 56, "blocks": 2, "layers": 3, "heads": 4, "key_width": 16}  # about as many parameters
SHARES = {  # of the whole budget, before they are scaled to 1
    "classifier": 8,
    "vqvae f4": 10,
    "vqgan f4": 10,
    "vqvae f2": 8,
    "vqvae f8": 8,
    "maps f4": 6,
    "transformer": 7,
    "pixelsnail": 7,
    "pixelsnail, equal steps": 7,
    "codes f2": 7,
    "pixels": 7,
    "window f2": 4,
    "window f4": 4,
    "window f8": 4,
    "class": 7,
    "map": 7,
}


# Data -------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shapes:
    """x, maps: (N, 3, 32, 32) in [−1, 1]; inside: (N, 32, 32), where the shape is; shape, colour: (N,) numbers."""

    x: Tensor
    maps: Tensor
    inside: Tensor
    shape: Tensor
    colour: Tensor


def drawn(count: int, seed: int) -> Shapes:
    """`count` images, each of one shape."""
    source = ShapesDataset(SIZE, mix=MIX)
    rng = np.random.default_rng(seed)
    scenes = [source.scene(int(rng.integers(len(source))), rng) for _ in range(count)]
    return Shapes(
        to_tensor(np.stack([np.asarray(source.render(scene)) for scene in scenes])),
        to_tensor(np.stack([np.asarray(shapes_map(source, scene)) for scene in scenes])),
        torch.from_numpy(np.stack([source.masks(scene)[0] > 0.5 for scene in scenes])),
        torch.tensor([SHAPES.index(scene.shapes[0].shape) for scene in scenes]),
        torch.tensor([COLOURS.index(scene.shapes[0].colour) for scene in scenes]),
    )


class Images:
    """Batches of images that lie in memory."""

    def __init__(self, x: Tensor, seed: int, batch_size: int = 16):
        self.x, self.seed, self.batch_size = x, seed, batch_size

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        chosen = torch.from_numpy(rng.integers(len(self.x), size=self.batch_size))
        return Batch(self.x[chosen], [""] * self.batch_size)


# Training ---------------------------------------------------------------------------------------------------------------------------------


def fit(stage: Any, batches: Any, rate: float, *, seconds: float | None = None, steps: int | None = None) -> dict[str, float]:
    """Train the networks of a stage for so many seconds of processor time, or steps; returns both."""
    optimizers = {name: torch.optim.AdamW(network.parameters(), rate, (0.9, 0.95)) for name, network in stage.networks.items()}
    for network in stage.networks.values():
        network.train()
    begun, step, done = time.process_time(), 0, 0.0
    while done < 1:
        batch = batches.batch(step)
        for name, loss, _ in stage.losses(batch, stage.networks, BatchRandom(torch.Generator().manual_seed(step), len(batch)), step):
            for group in optimizers[name].param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 20, (1 - done) / 0.25)
            optimizers[name].zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(stage.networks[name].parameters(), 1.0)
            optimizers[name].step()
        step += 1
        done = (time.process_time() - begun) / seconds if seconds is not None else step / (steps or 1)
    for network in stage.networks.values():
        network.eval()
    return {"seconds": time.process_time() - begun, "steps": step}


class Classifier(nn.Module):
    """Tells shape and colour; what comes before its heads are the features of the Fréchet distances."""

    name = "classifier"

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.SiLU()) for a, b in ((3, 32), (32, 64), (64, 64))]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 48), nn.SiLU())
        self.shape, self.colour = nn.Linear(48, len(SHAPES)), nn.Linear(48, len(COLOURS))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of shape and colour."""
        features = self.features(x)
        return self.shape(features), self.colour(features)


class ClassifierTask:
    """Trains a classifier, on images with a little noise."""

    def __init__(self, classifier: Classifier):
        self.classifier, self.networks = classifier, {"classifier": classifier}

    def losses(self, batch: Shapes, networks: Mapping[str, nn.Module], random: BatchRandom, step: int):
        x = batch.x + 0.05 * random.normal(batch.x.shape[1:])
        shape, colour = self.classifier.predict(x)
        yield "classifier", F.cross_entropy(shape, batch.shape) + F.cross_entropy(colour, batch.colour), {}


class Labelled:
    """Batches of shapes with what they are."""

    def __init__(self, data: Shapes):
        self.data = data

    def batch(self, step: int) -> Shapes:
        chosen = torch.from_numpy(np.random.default_rng([SEED, step]).integers(len(self.data.x), size=64))
        return Shapes(*(getattr(self.data, name)[chosen] for name in ("x", "maps", "inside", "shape", "colour")))


def vq_config(f: int, codes: int = CODES) -> VQModelConfig:
    channels = CHANNELS[: f.bit_length()]
    shape: dict[str, Any] = {"blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": 4}
    quantizer = QuantizerConfig(codes, 16, "ema", decay=0.95, dead_code_threshold=0.1)
    return VQModelConfig(quantizer, latent_channels=channels[-1], channels=channels, **shape)


# The run ----------------------------------------------------------------------------------------------------------------------------------


class Run:
    """The networks and measurements of one training seed, stored in its folder of `work`; seeds share the classifier."""

    def __init__(self, work: Path, minutes: float, seeds: int, seed: int):
        self.shared, self.work, self.seed = work, work / f"seed {seed}", seed
        self.share = 60 * minutes / (seeds * sum(SHARES.values()) - (seeds - 1) * SHARES["classifier"])  # in seconds
        self.work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def train(self) -> Shapes:
        return drawn(TRAINED, SEED)

    @cached_property
    def test(self) -> Shapes:
        return drawn(TESTED, SEED + 1)

    def seconds(self, name: str) -> float:
        return self.share * SHARES[name]

    def trained(self, name: str, network: nn.Module, fitted: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The network with its weights from `work`, or trained now; returns seconds and steps."""
        folder = self.shared if name == "classifier" else self.work
        weights, record = folder / f"{name}.safetensors", folder / f"{name}.json"
        if record.is_file():
            network.load_state_dict(load_file(weights), strict=True)
            network.eval()
            return json.loads(record.read_text())
        found = {**fitted(), "parameters": sum(p.numel() for p in network.parameters())}
        save_safetensors(weights, network.state_dict())
        record.write_text(json.dumps(found))
        print(f"seed {self.seed}: {name}: {found['steps']} steps in {found['seconds']:.0f} s, {found['parameters']} parameters", flush=True)
        return found

    @cached_property
    def classifier(self) -> Classifier:
        torch.manual_seed(SEED)
        classifier = Classifier()
        self.trained(
            "classifier",
            classifier,
            lambda: fit(ClassifierTask(classifier), Labelled(self.train), RATE, seconds=self.seconds("classifier")),
        )
        return classifier

    def first_stage(self, name: str) -> VQModel:
        """ "vqvae f4", "vqgan f4", "maps f4": the same network and budget; the GAN's critic enters at a third of it."""
        kind, _, f = name.partition(" f")
        torch.manual_seed(self.seed)
        network = VQModel(vq_config(int(f), 32 if kind == "maps" else CODES))
        data = self.train.maps if kind == "maps" else self.train.x

        def fitted() -> dict[str, float]:
            if kind != "vqgan":
                stage = QuantizedTask(network, AutoencoderLoss(), data[:8], codebook_start=ENTERS)
                return fit(stage, Images(data, self.seed), RATE, seconds=self.seconds(name))
            # A third of the plain one's steps: with the critic a step costs about twice as much, so it then has half of the time.
            start = max(self.steps("vqvae f4") // 3, ENTERS)
            loss = AutoencoderLoss(adversarial_weight=0.5, adversarial_start=start, adversarial_ramp=max(start // 4, 1))
            critic = PatchDiscriminator(PatchDiscriminatorConfig(channels=24, layers=2))
            stage = QuantizedTask(network, loss, data[:8], discriminator=critic, codebook_start=ENTERS)
            return fit(stage, Images(data, self.seed), RATE, seconds=self.seconds(name))

        if kind == "vqgan":
            self.first_stage("vqvae f4")
        if self.trained(name, network, fitted)["steps"] <= ENTERS:
            raise DaguerreError(
                f"The codebook of '{name}' takes part from step {ENTERS} on, which was not reached; give more --minutes, in another --work."
            )
        return network.requires_grad_(False)

    def steps(self, name: str) -> int:
        return json.loads((self.work / f"{name}.json").read_text())["steps"]

    def prior(self, name: str, network: Prior, data: CodeBatch, batch_size: int = 32, steps: int | None = None) -> dict[str, float]:
        """A prior trained on codes; the first stage of a stage is only for its samples, which are not asked for here."""
        like = VQModel(replace(vq_config(2), quantizer=QuantizerConfig(network.config.codes, 4)))
        stage = PriorTask(network, like, data[:1])
        batches = CodeBatches(data.codes, data.condition, batch_size, self.seed)
        budget: dict[str, Any] = {"seconds": self.seconds(name)} if steps is None else {"steps": steps}
        return self.trained(name, network, lambda: fit(stage, batches, PRIOR_RATE, **budget))

    def kept(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A measurement from `work`, or made now."""
        path = self.work / f"measured {name}.json"
        if not path.is_file():
            found = measure()
            path.write_text(json.dumps(found))
            print(f"seed {self.seed}: {name}", found, flush=True)
        return json.loads(path.read_text())


@torch.no_grad()
def encoded(first_stage: VQModel, x: Tensor) -> Tensor:
    """The codes (N, h, w) of many images."""
    return torch.cat([first_stage.encode_codes(part) for part in x.split(250)])


@torch.no_grad()
def decoded(first_stage: VQModel, codes: Tensor) -> Tensor:
    return torch.cat([first_stage.decode_codes(part).clamp(-1, 1) for part in codes.split(250)])


def sampled(prior: Prior, grid: tuple[int, int], count: int, condition: Tensor | None = None) -> tuple[Tensor, float]:
    """`count` grids of codes, and the seconds of processor time for them."""
    u = uniform_noise([torch.Generator().manual_seed(SEED + i) for i in range(count)], grid)
    begun = time.process_time()
    *_, codes = prior.sample(grid, u, condition)
    return codes, time.process_time() - begun


def transformer(run: Run, codes: int, grid: tuple[int, int], condition_length: int = 1, condition_codes: int = 0) -> TransformerPrior:
    torch.manual_seed(run.seed)
    return TransformerPrior(TransformerPriorConfig(codes, condition_codes, condition_length + grid[0] * grid[1], grid, **TRANSFORMER))


def distances(run: Run, true: Tensor, sets: Mapping[str, Tensor], *, paired: bool) -> dict[str, Any]:
    """Fréchet distances of sets of images to true ones, with how far they move when the images are drawn again; and of each set but
    the first, how much farther than the first it is, and how many times as far. Every redraw takes the same rows of all sets, of the true
    ones too where `paired`.

    A redrawn distance is biased upwards as the distance itself is, once more: so the interval is its spread, laid around the distance.
    """
    first, generator = next(iter(sets)), torch.Generator().manual_seed(SEED)
    x, y = features(run, true), {name: features(run, each) for name, each in sets.items()}
    found = {name: frechet_distance(each, x) for name, each in y.items()}
    redrawn: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(REDRAWS):
        rows = torch.randint(len(y[first]), (len(y[first]),), generator=generator)
        to = x[rows] if paired else x[torch.randint(len(x), (len(x),), generator=generator)]
        for name, each in y.items():
            redrawn[name].append(frechet_distance(each[rows], to))
    spread = {name: torch.tensor(values) for name, values in redrawn.items()}
    farther = {f"{name}, farther": around(found[name] - found[first], spread[name] - spread[first]) for name in sets if name != first}
    times = {f"{name}, times": around(found[name] / found[first], spread[name] / spread[first]) for name in sets if name != first}
    return {name: around(found[name], spread[name]) for name in sets} | farther | times


def around(value: float, redrawn: Tensor) -> dict[str, float]:
    low, high = (redrawn.quantile(torch.tensor([0.025, 0.975])) - redrawn.mean()).tolist()
    return {"value": value, "low": value + low, "high": value + high}


def interval(values: Tensor) -> dict[str, float]:
    found = bootstrap(values)
    return {"value": found.value, "low": found.low, "high": found.high}


# Experiments: each returns what it measured, and writes its image -----------------------------------------------------------------------


def rebuilding(run: Run) -> dict[str, Any]:
    """VQ-VAE against VQGAN."""
    networks = {name: run.first_stage(name) for name in ("vqgan f4", "vqvae f4")}
    x = run.test.x
    rebuilt = {name: decoded(network, encoded(network, x)) for name, network in networks.items()}
    labels = [name for name in ("given", *rebuilt) for _ in range(8)]
    save_grid(run.work / "reconstruction.png", [*map(to_image, torch.cat([each[:8] for each in (x, *rebuilt.values())]))], labels, 8)
    found: dict[str, Any] = {"frechet": distances(run, x, rebuilt, paired=True)}
    for name, y in rebuilt.items():
        found[name] = {
            "psnr": interval(psnr(x, y)),
            "ssim": interval(ssim(x, y)),
            **run.trained(name, networks[name], dict),
        }
    found["psnr difference"] = interval(psnr(x, rebuilt["vqvae f4"]) - psnr(x, rebuilt["vqgan f4"]))
    return found


def against_pixelsnail(run: Run) -> dict[str, Any]:
    """Transformer against PixelSNAIL, on the VQGAN's codes."""
    first_stage = run.first_stage("vqgan f4")
    data, test = CodeBatch(encoded(first_stage, run.train.x)), CodeBatch(encoded(first_stage, run.test.x))

    def snail() -> PixelSNAIL:
        torch.manual_seed(run.seed)
        return PixelSNAIL(PixelSNAILConfig(CODES, **SNAIL))

    priors: dict[str, Prior] = {"transformer": transformer(run, CODES, (8, 8)), "pixelsnail": snail(), "pixelsnail, equal steps": snail()}
    found: dict[str, Any] = {}
    bits: dict[str, Tensor] = {}
    for name, prior in priors.items():
        steps = int(found["transformer"]["steps"]) if "equal" in name else None
        found[name] = run.prior(name, prior, data, steps=steps)
        bits[name] = code_lengths(prior, test)
        found[name]["bits/code"] = interval(bits[name])
    for name in ("pixelsnail", "pixelsnail, equal steps"):
        found[f"{name}, difference"] = interval(bits[name] - bits["transformer"])
    x = [decoded(first_stage, sampled(priors[name], (8, 8), 8)[0]) for name in ("transformer", "pixelsnail")]
    save_grid(run.work / "priors.png", [*map(to_image, torch.cat(x))], ["transformer"] * 8 + ["PixelSNAIL"] * 8, 8)
    return found


def pixels_or_codes(run: Run) -> dict[str, Any]:
    """The same transformer over pixels of 64 colours and over codes of f2."""
    first_stage = run.first_stage("vqvae f2")
    ways: dict[str, tuple[int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "codes f2": (CODES, lambda x: encoded(first_stage, x), lambda codes: decoded(first_stage, codes)),
        "pixels": (LEVELS**3, colours, painted),
    }
    found: dict[str, Any] = {}
    x: dict[str, Tensor] = {}
    for name, (size, encode, decode) in ways.items():
        data, test = CodeBatch(encode(run.train.x)), CodeBatch(encode(run.test.x[:100]))
        grid = (data.codes.shape[1], data.codes.shape[2])
        prior = transformer(run, size, grid)
        found[name] = run.prior(name, prior, data, batch_size=8)
        codes, seconds = sampled(prior, grid, DRAWN)
        x[name] = decode(codes)
        area = SIZE * SIZE / (grid[0] * grid[1])
        found[name] |= {
            "bits/pixel": interval(code_lengths(prior, test) / area),
            "seconds/image": seconds / DRAWN,
            "psnr": interval(psnr(run.test.x, decode(encode(run.test.x)))),
        }
    found["frechet"] = distances(run, run.test.x, x | {"true": others()}, paired=False)
    save_grid(run.work / "pixels.png", [*map(to_image, torch.cat([each[:8] for each in x.values()]))], ["codes f2"] * 8 + ["pixels"] * 8, 8)
    return found


def same_window(run: Run) -> dict[str, Any]:
    """The same transformer with a window of 4×4 codes, over codes of f2, f4 and f8: what it sees at once is 8, 16 or 32 pixels wide."""
    found: dict[str, Any] = {}
    x: dict[str, Tensor] = {}
    rebuilt: dict[str, Tensor] = {}
    for f in (8, 4, 2):
        name, first_stage = f"f{f}", run.first_stage(f"vqvae f{f}")
        corners = np.random.default_rng(SEED).integers(0, SIZE // f - 3, (TRAINED, 2))
        whole = encoded(first_stage, run.train.x)
        data = CodeBatch(torch.stack([codes[i : i + 4, j : j + 4] for codes, (i, j) in zip(whole, corners, strict=True)]))
        prior = transformer(run, CODES, (4, 4))
        found[name] = run.prior(f"window f{f}", prior, data)
        codes, seconds = sampled(prior, (SIZE // f, SIZE // f), DRAWN)
        x[name], rebuilt[name] = decoded(first_stage, codes), decoded(first_stage, encoded(first_stage, run.test.x))
        found[name]["seconds/image"] = seconds / DRAWN
        like = decoded(first_stage, encoded(first_stage, others()))
        found[name]["to rebuilt"] = distances(run, rebuilt[name], {"others": like, "samples": x[name]}, paired=False)
    found["frechet"] = distances(run, run.test.x, x | {"true": others()}, paired=False)
    found["rebuilt"] = distances(run, run.test.x, rebuilt, paired=True)
    labels = [f"{name}, sees {4 * int(name[1:])} pixels" for name in x for _ in range(8)]
    save_grid(run.work / "window.png", [*map(to_image, torch.cat([each[:8] for each in x.values()]))], labels, 8)
    return found


def conditional(run: Run) -> dict[str, Any]:
    """Class- and map-conditional transformers against the unconditional one; and whether the samples match their conditions."""
    first_stage, maps = run.first_stage("vqgan f4"), run.first_stage("maps f4")
    data, test = encoded(first_stage, run.train.x), encoded(first_stage, run.test.x)
    conditions = {
        "class": (kinds(run.train), kinds(run.test), len(SHAPES) * len(COLOURS)),
        "map": (encoded(maps, run.train.maps), encoded(maps, run.test.maps), 32),
    }
    nothing = transformer(run, CODES, (8, 8))
    run.prior("transformer", nothing, CodeBatch(data))
    bits = {"nothing": code_lengths(nothing, CodeBatch(test))}
    found: dict[str, Any] = {"nothing": {"bits/code": interval(bits["nothing"])}}
    x: dict[str, Tensor] = {}
    for name, (trained, tested, tokens) in conditions.items():
        prior = transformer(run, CODES, (8, 8), trained[0].numel(), tokens)
        found[name] = run.prior(name, prior, CodeBatch(data, trained))
        bits[name] = code_lengths(prior, CodeBatch(test, tested))
        found[name] |= {"bits/code": interval(bits[name]), "saved": interval(bits["nothing"] - bits[name])}
        x[name] = decoded(first_stage, sampled(prior, (8, 8), DRAWN, tested[:DRAWN])[0])
    rebuilt, inside = decoded(first_stage, test[:DRAWN]), run.test.inside[:DRAWN]
    for which, y in (("drawn", x["class"]), ("rebuilt", rebuilt), ("true", run.test.x[:DRAWN])):
        with torch.no_grad():
            shape, colour = (logits.argmax(1) for logits in run.classifier.predict(y))
        found["class"][f"{which}, shape"] = share(shape == run.test.shape[:DRAWN])
        found["class"][f"{which}, colour"] = share(colour == run.test.colour[:DRAWN])
    own, other = agreement(x["map"], inside), agreement(x["map"], inside.roll(1, 0))
    found["map"]["agreement"], found["map"]["agreement with another map"] = interval(own), interval(other)
    found["map"]["agreement above another's"] = interval(own - other)
    found["map"]["agreement of rebuilt"] = interval(agreement(rebuilt, inside))
    names = [f"{COLOURS[c]} {SHAPES[s]}" for c, s in zip(run.test.colour[:8].tolist(), run.test.shape[:8].tolist(), strict=True)]
    save_grid(run.work / "classes.png", [*map(to_image, x["class"][:8])], names, 8)
    save_grid(run.work / "maps.png", [*map(to_image, (*run.test.maps[:8], *x["map"][:8]))], ["map"] * 8 + ["drawn by it"] * 8, 8)
    return found


def agreement(x: Tensor, inside: Tensor) -> Tensor:
    """Intersection over union, (N,), of where images (N, 3, H, W) differ from the colour around the shape, and where the map has it."""
    found = []
    for image, mask in zip(x, inside, strict=True):
        around = image[:, ~mask].median(dim=1).values  # (3,)
        differs = (image - around[:, None, None]).abs().amax(dim=0) > 0.4
        found.append((differs & mask).sum() / (differs | mask).sum())
    return torch.stack(found)


def colours(x: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) as one of 4³ colours each: (N, H, W)."""
    levels = ((x + 1) / 2 * (LEVELS - 1)).round().long()
    return (levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2]


def painted(codes: Tensor) -> Tensor:
    """The reverse of `colours`: (N, 3, H, W)."""
    levels = torch.stack([codes // LEVELS**2, codes // LEVELS % LEVELS, codes % LEVELS], dim=1)
    return levels / (LEVELS - 1) * 2 - 1


def features(run: Run, x: Tensor) -> Tensor:
    classifier = run.classifier  # perhaps trained here, with gradients
    with torch.no_grad():
        return classifier.features(x)


def others() -> Tensor:
    """As many other true images as are sampled: how far true images are from true ones."""
    return drawn(DRAWN, SEED + 2).x


def kinds(data: Shapes) -> Tensor:
    """Colour and shape as one class each: (N, 1)."""
    return (data.shape * len(COLOURS) + data.colour)[:, None]


def share(hits: Tensor) -> dict[str, float]:
    found = proportion(hits)
    return {"value": found.value, "low": found.low, "high": found.high}


def save_grid(path: Path, images: Sequence[Image.Image], labels: Sequence[str], columns: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(images, labels, columns).save(path, optimize=True)


EXPERIMENTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "reconstruction": rebuilding,
    "priors": against_pixelsnail,
    "pixels": pixels_or_codes,
    "window": same_window,
    "conditional": conditional,
}


def measured(work: Path, minutes: float, seeds: int, seed: int) -> dict[str, Any]:
    """All experiments with one training seed, on one thread."""
    torch.set_num_threads(1)
    run = Run(work, minutes, seeds, seed)
    return {name: run.kept(name, lambda measure=measure: measure(run)) for name, measure in EXPERIMENTS.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=DEFAULT, help="of processor time for all trainings together")
    parser.add_argument("--seeds", type=int, default=2, help="how often everything is trained")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="how many seeds are trained at once")
    parser.add_argument("--work", type=Path, default=Path("runs/vqgan"), help="where networks and measurements are kept")
    parser.add_argument("--images", type=Path, default=Path(__file__).parents[1] / "docs" / "vqgan", help="directory for the images")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="file for the tables")
    given = parser.parse_args(arguments)
    plan, path = {"minutes": given.minutes, "seeds": given.seeds}, given.work / "plan.json"
    if path.is_file() and json.loads(path.read_text()) != plan:
        parser.error(f"{given.work} holds a run of {json.loads(path.read_text())}; go on with that, or give another --work.")
    torch.set_num_threads(1)
    begun, run = time.monotonic(), Run(given.work, given.minutes, given.seeds, 0)
    path.write_text(json.dumps(plan))
    _ = run.classifier  # before the seeds that share it
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(measured, given.work, given.minutes, given.seeds, seed) for seed in range(given.seeds)]
        try:
            found = [job.result() for job in jobs]
        except DaguerreError as error:
            parser.error(str(error))
    given.images.mkdir(parents=True, exist_ok=True)
    for image in run.work.glob("*.png"):
        shutil.copy(image, given.images)
    images = os.path.relpath(given.images, given.out.parent)
    given.out.write_text(page(found, given.minutes).replace("](", f"]({images}/").replace(f"]({images}/http", "](http"))
    print(f"{given.out} after {(time.monotonic() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
