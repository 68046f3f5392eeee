"""Images from an autoregressive prior: conditions, sizes above and below its window, completion, folders, and errors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import daguerre
from daguerre.conditioning import train_tokenizer
from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, EmptyPrefix, MapPrefix, Prefixes, TextPrefix
from daguerre.data.images import to_tensor
from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import Sampling, uniform_noise
from daguerre.models.latent_prior import LatentPrior, PriorInputs
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.pipelines.metadata.write import read_provenance
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Completion, ImageToImage, MapToImage
from daguerre.weights import load_diffusion, save

SHAPE = {"blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": 2}
VQ = VQModelConfig(QuantizerConfig(codes=8, width=4), latent_channels=4, channels=(4, 8, 8), **SHAPE)
PALETTE = ((0, 0, 0), (255, 0, 0))


def first_stage(seed: int = 0) -> VQModel:
    torch.manual_seed(seed)
    network = VQModel(VQ).eval()
    for part in (network.quantize.embedding, network.quant_conv, network.encoder.conv_out):  # so that pictures have codes of their own
        torch.nn.init.normal_(part.weight)
    torch.nn.init.normal_(network.decoder.conv_out.weight, std=0.3)
    return network


def model_of(prefix: Prefixes, prefix_length: int = 1) -> LatentPrior:
    """Images of 16 pixels as 4×4 codes."""
    torch.manual_seed(1)
    prior = TransformerPrior(TransformerPriorConfig(8, prefix.tokens, prefix_length + 16, (4, 4), width=16, layers=1, heads=2)).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # so that the condition has a visible effect
    return LatentPrior(prior, first_stage(), prefix, "tiny", 16)


def map_model() -> LatentPrior:
    return model_of(MapPrefix(first_stage(5), "semantic", PALETTE), prefix_length=16)


@pytest.fixture(scope="module")
def by_text() -> LatentPrior:
    tokenizer = train_tokenizer(["a red circle", "a blue square"] * 4, 600, 8)
    return model_of(TextPrefix(tokenizer), prefix_length=8)


def codes_of(model: LatentPrior, request: Request) -> torch.Tensor:
    *_, last = daguerre.stream(model, request)
    return last.codes


def test_a_request_gives_the_codes_of_the_prior(by_text: LatentPrior):
    """The pipeline against its parts: tokens, noise of each seed, prior, decoder."""
    request = Request(prompt=("a red circle", "a blue square"), seed=3, num_images=2, temperature=0.9, top_k=5)
    steps = list(daguerre.stream(by_text, request))
    assert [(step.index, step.total, step.images is None) for step in steps] == [(i, 4, i < 3) for i in range(4)]
    assert isinstance(by_text.prefix, TextPrefix)
    condition = by_text.prefix.tokenizer(["a red circle"] * 2 + ["a blue square"] * 2)
    u = uniform_noise([torch.Generator().manual_seed(seed) for seed in (3, 4, 3, 4)], (4, 4))
    *_, expected = by_text.prior.sample((4, 4), u, condition, Sampling(0.9, 5))
    assert torch.equal(steps[-1].codes, expected)
    pictures = steps[-1].images
    assert pictures is not None
    assert pictures[2].image.size == (16, 16)
    assert pictures[2].image.tobytes() == steps[-1].decode(2).tobytes()
    assert steps[-1].preview().size == (4, 4)
    assert len(expected.unique()) > 2
    red, blue = (codes_of(by_text, Request(prompt=prompt, num_images=16)) for prompt in ("a red circle", "a blue square"))
    assert not torch.equal(red, blue)


def test_an_image_of_a_batch_equals_the_image_alone(by_text: LatentPrior):
    several = codes_of(by_text, Request(prompt="a red circle", seed=5, num_images=3))
    assert torch.equal(several[1:2], codes_of(by_text, Request(prompt="a red circle", seed=6)))


def test_larger_images_use_a_sliding_window_and_smaller_ones_its_middle():
    model = model_of(EmptyPrefix())
    assert codes_of(model, Request(width=32, height=20)).shape == (1, 5, 8)
    whole = codes_of(model, Request(seed=2))
    assert torch.equal(codes_of(model, Request(seed=2, width=8, height=16)), whole[:, :, 1:3])


def test_coordinates_are_those_of_the_whole_image():
    model = model_of(CoordinatePrefix(64, 4), prefix_length=16)
    places = model.prefix(PriorInputs(["", ""], (4, 8)))
    assert places is not None
    assert places.shape == (2, 4, 8)
    assert places[0, 0, 0] < places[0, 0, -1] < places[0, -1, -1] < 64
    assert codes_of(model, Request(width=32)).shape == (1, 4, 8)


def test_a_map_conditions_through_its_codes():
    model = map_model()
    left, right = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), (255, 0, 0))
    assert isinstance(model.prefix, MapPrefix)
    tokens = model.prefix(PriorInputs(["", ""], (4, 4), to_tensor(right)[None]))
    assert tokens is not None
    assert torch.equal(tokens, model.prefix.autoencoder.encode_codes(to_tensor(right)[None]).expand(2, -1, -1))
    made = [codes_of(model, Request(task=MapToImage(picture), num_images=16)) for picture in (left, right)]
    assert not torch.equal(*made)
    assert codes_of(model, Request(task=MapToImage(Image.new("RGB", (32, 16))))).shape == (1, 4, 8)  # the map's own size


def test_the_lower_half_is_completed():
    model = model_of(EmptyPrefix())
    picture = Image.linear_gradient("L").convert("RGB").resize((16, 16))
    with torch.no_grad():
        codes = model.autoencoder.encode_codes(to_tensor(picture)[None])
    request = Request(task=Completion(picture, keep=0.5), num_images=3)
    steps = list(daguerre.stream(model, request))
    assert [step.total for step in steps] == [2, 2]
    assert torch.equal(steps[-1].codes[:, :2], codes[:, :2].expand(3, -1, -1))
    assert len({tuple(row.flatten().tolist()) for row in steps[-1].codes[:, 2:]}) > 1


@pytest.mark.parametrize("kind", ["none", "class", "text", "map", "coordinates"])
def test_a_saved_folder_gives_the_same_images(kind: str, by_text: LatentPrior, tmp_path: Path):
    models = {"none": model_of(EmptyPrefix()), "class": model_of(ClassPrefix(("cat", "dog"))), "text": by_text, "map": map_model()}
    model = models.get(kind) or model_of(CoordinatePrefix(64, 4), prefix_length=16)
    task = MapToImage(Image.new("RGB", (16, 16), (255, 0, 0))) if kind == "map" else Request.task
    request = Request(prompt={"class": "Dog", "text": "a red circle"}.get(kind, ""), seed=9, task=task)
    again = daguerre.load(save(model, tmp_path / "model"))
    assert isinstance(again, LatentPrior)
    assert type(again.prefix) is type(model.prefix)
    assert torch.equal(codes_of(again, request), codes_of(model, request))
    with pytest.raises(DaguerreError, match="daguerre sample"):
        load_diffusion(tmp_path / "model")
    path = daguerre.generate(again, request)[0].save(tmp_path / "picture.png")
    _, origin = read_provenance(path)
    assert (origin.request.sampler, origin.request.prompt) == ("vq-prior", request.prompt)


def test_a_prior_of_another_first_stage_is_refused(tmp_path: Path):
    one, two = (save(replace(model_of(EmptyPrefix()), autoencoder=first_stage(seed)), tmp_path / str(seed)) for seed in (0, 1))
    (one / "vqvae").rename(tmp_path / "aside")
    (two / "vqvae").rename(one / "vqvae")
    with pytest.raises(DaguerreError, match="trained on the codes of another first stage"):
        daguerre.load(one)


@pytest.mark.parametrize(
    ("prefix", "request_", "message"),
    [
        (EmptyPrefix(), Request(prompt="a cat"), "takes no prompt, so 'a cat'"),
        (EmptyPrefix(), Request(task=MapToImage(Image.new("RGB", (16, 16)))), "takes no condition map"),
        (EmptyPrefix(), Request(width=18), "18 is not a multiple of 4"),
        (EmptyPrefix(), Request(task=ImageToImage(Image.new("RGB", (16, 16)))), "cannot do img2img"),
        (EmptyPrefix(), Request(task=Completion(Image.new("RGB", (16, 16))), width=8, height=8), "16×16 pixels or more; got 8×8"),
        (EmptyPrefix(), Request(temperature=-1.0), "temperature is -1.0"),
        (ClassPrefix(("cat", "dog")), Request(), "prompt is empty, but this prior needs a class name; the classes are cat, dog"),
        (ClassPrefix(("cat", "dog")), Request(prompt="dogg"), "Unknown class 'dogg'; the classes are cat, dog. Did you mean 'dog'"),
        (MapPrefix(first_stage(5), "semantic", PALETTE), Request(), "give one with --map"),
        (
            MapPrefix(first_stage(5), "semantic", PALETTE),
            Request(task=MapToImage(Image.new("RGB", (16, 16), (9, 0, 0)))),
            r"100% of the map's pixels, such as \(9, 0, 0\), have no class; the colours must be #000000, #ff0000",
        ),
        (
            MapPrefix(first_stage(5), "semantic", PALETTE),
            Request(task=MapToImage(Image.new("RGB", (16, 16))), width=32),
            "map has 16×16 pixels; it must be as large as the image, 32×16",
        ),
    ],
)  # fmt: skip
def test_unsupported_requests_are_refused_before_sampling(prefix: Prefixes, request_: Request, message: str):
    with pytest.raises(DaguerreError, match=message):
        daguerre.stream(model_of(prefix, prefix_length=16), request_)


def test_keep_must_be_a_share():
    with pytest.raises(DaguerreError, match="keep is 1"):
        Completion(Image.new("RGB", (16, 16)), keep=1.0)
