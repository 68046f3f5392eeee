"""`train lora`: the file gives the weights that were trained, the model stays as it is, and an interrupted run resumes exactly."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import daguerre
from daguerre.adapters import load_lora, with_adapters
from daguerre.adapters.attach import adapted_networks
from daguerre.adapters.describe import trigger_words
from daguerre.adapters.lora.write import save_lora
from daguerre.data import BatchLoader, FolderDataset
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.objectives.adapters.lora import LoraNetwork, LoraTask, layers_of, new_layers, shuffle_caption
from daguerre.training.options.adapters.lora import LoraOptions, LoraRecipe
from daguerre.training.options.images import BucketedTrainingImageOptions
from daguerre.training.recipes.adapters.lora import run
from daguerre.weights import save
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_metadata, read_safetensors
from tests.families.conftest import peer

__all__ = ["peer"]
CAPTIONS = ("a red apple, ink", "a blue apple, ink", "a green circle, ink")
LOOP = LoopConfig(max_train_steps=4, batch_size=2, learning_rate=1e-2, lr_warmup_steps=1, ema_decay=0, sample_every=0, checkpoint_every=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        image = Image.new("RGB", (40, 32), "white")
        ImageDraw.Draw(image).ellipse((4, 4, 28, 28), fill=caption.split()[1])
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.fixture
def saved(tiny_model: LatentDiffusion, tmp_path: Path) -> str:
    return str(save(tiny_model, tmp_path / "tiny"))


def trained_network(model: LatentDiffusion, options: LoraOptions) -> LoraNetwork:
    """A LoRA with random tensors, as training leaves it."""
    torch.manual_seed(1)
    network = LoraNetwork(model, new_layers(model, options))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def inputs_of(model: LatentDiffusion) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    side = model.sample_size // model.autoencoder.downsample_factor
    return torch.randn(2, model.unet.config.out_channels, side, side, generator=generator), torch.tensor([10, 900])


@torch.no_grad()
def prediction(model: LatentDiffusion) -> Tensor:
    conditioner = model.conditioner.with_size(model.sample_size, model.sample_size)  # pyright: ignore
    return model.unet(*inputs_of(model), conditioner.encode_captions(CAPTIONS[:2]))


@pytest.mark.parametrize(
    "options",
    [LoraOptions(4), LoraOptions(2, 6.0, modules=".", train_text_encoder=True), LoraOptions(3, modules="attn|conv", dora=True)],
    ids=["attentions", "all layers and text, with alpha", "DoRA"],
)
@pytest.mark.parametrize("naming", ["kohya", "peft"])
def test_the_file_gives_what_was_trained(make_tiny_model: Callable[..., LatentDiffusion], tmp_path: Path, options, naming):
    model = make_tiny_model()
    before = prediction(model)
    network = trained_network(model, options)
    with network.attached(), torch.no_grad():
        trained = network(*inputs_of(model), CAPTIONS[:2])
    file = save_lora(network.value("x", {}), tmp_path / "x.safetensors", adapted_networks(model), naming=naming)
    assert torch.equal(prediction(model), before)
    assert (trained - before).abs().max() > 0.05
    assert torch.allclose(prediction(with_adapters(model, [load_lora(file)])), trained, rtol=0, atol=1e-4 * trained.abs().max().item())
    again = LoraNetwork(model, layers_of(load_lora(file), model))
    with again.attached(), torch.no_grad():
        assert torch.allclose(again(*inputs_of(model), CAPTIONS[:2]), trained, rtol=0, atol=1e-5 * trained.abs().max().item())


def test_a_new_lora_changes_nothing(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    network = LoraNetwork(model, new_layers(model, LoraOptions(modules=".", train_text_encoder=True)))
    with network.attached(), torch.no_grad():
        assert torch.equal(network(*inputs_of(model), CAPTIONS[:2]), prediction(model))


def test_the_gradient_is_that_of_the_changed_weights(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    network = trained_network(model, LoraOptions(2, 6.0, modules="attn2.to_k"))
    with network.attached():
        network(*inputs_of(model), CAPTIONS[:2]).square().mean().backward()
    (_, path), layer = network.paths[0], network.layers[0]
    base = model.unet.get_submodule(path).weight
    down, up = (tensor.detach().clone().requires_grad_() for tensor in (layer.down, layer.up))
    others = {f"{other}.weight": model.unet.get_submodule(other).weight + each.delta.matrix() for (_, other), each in
              zip(network.paths[1:], network.layers[1:], strict=True)}  # fmt: skip
    changed = {**others, f"{path}.weight": base + 3 * up @ down}
    condition = model.conditioner.encode_captions(CAPTIONS[:2])  # pyright: ignore
    torch.func.functional_call(model.unet, changed, (*inputs_of(model), condition)).square().mean().backward()
    for ours, truth in ((layer.down.grad, down.grad), (layer.up.grad, up.grad)):
        assert torch.allclose(ours, truth, rtol=0, atol=1e-4 * truth.abs().max().item())


@torch.no_grad()
def mean_error(network: LoraNetwork, folder: Path) -> float:
    """The mean squared error on the folder's images with their captions, with the same noise each time."""
    task = LoraTask(network, DiffusionLoss(caption_dropout=0), LoraOptions(), ())
    batch = BatchLoader(FolderDataset(folder, 32), 16, 0, 32).batch(0)
    with network.attached():
        ((_, loss, _),) = task.losses(batch, task.networks, BatchRandom(torch.Generator().manual_seed(0), len(batch)), 0)
    return loss.item()


def test_training_lowers_the_loss_and_leaves_the_model(saved: str, folder: Path, tmp_path: Path):
    loop = replace(LOOP, max_train_steps=20, checkpoint_every=20)
    path = run(LoraRecipe(folder, tmp_path / "ink", saved, loop=loop, loss=DiffusionLoss(caption_dropout=0)))
    assert path == tmp_path / "ink" / "ink.safetensors"
    model, lora = daguerre.load(saved), load_lora(path)
    assert isinstance(model, LatentDiffusion)
    styled = with_adapters(model, [lora])
    new, trained = (LoraNetwork(model, layers) for layers in (new_layers(model, LoraOptions()), layers_of(lora, model)))
    assert mean_error(trained, folder) < 0.9 * mean_error(new, folder)
    peft = with_adapters(model, [load_lora(tmp_path / "ink" / "ink-peft.safetensors")])
    assert torch.allclose(prediction(peft), prediction(styled), rtol=0, atol=1e-5)
    header = read_metadata(path)
    assert (header["ss_network_dim"], header["ss_network_alpha"], header["ss_output_name"]) == ("8", "8.0", "ink")
    assert trigger_words(header)[0] == "ink"


def test_an_interrupted_run_resumes_exactly(saved: str, folder: Path, tmp_path: Path):
    options = LoraOptions(2, train_text_encoder=True, dora=True, noise_offset=0.05, shuffle_captions=True, keep_tokens=1)
    buckets = BucketedTrainingImageOptions(crop="bucket")

    def trained(out: str, steps: int) -> dict[str, Tensor]:
        loop = replace(LOOP, max_train_steps=steps, lr_decay=0)
        return read_safetensors(run(LoraRecipe(folder, tmp_path / out, saved, lora=options, images=buckets, loop=loop)))

    whole, half = trained("whole", 4), trained("parts", 2)
    parts = trained("parts", 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)
    with pytest.raises(DaguerreError, match=r"belongs to a run with recipe\.lora\.rank 2, not 4"):
        run(LoraRecipe(folder, tmp_path / "parts", saved, lora=replace(options, rank=4), images=buckets, loop=replace(LOOP, lr_decay=0)))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_base_in_half_precision_gives_a_float32_lora(saved: str, folder: Path, tmp_path: Path, precision: str):
    def trained(dtype: Any, precision: Any) -> tuple[Path, dict[str, Tensor]]:
        options = LoraOptions(2, modules="attn2", base_dtype=dtype, train_text_encoder=True, dora=True)
        loop = replace(LOOP, max_train_steps=2, mixed_precision=precision)
        path = run(LoraRecipe(folder, tmp_path / dtype, saved, lora=options, loop=loop))
        return path, read_safetensors(path)

    (path, half), (_, full) = trained("bfloat16", precision), trained("float32", "no")
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    moved = [name for name in full if name.endswith("lora_up.weight") and full[name].abs().max() > 0]
    assert moved
    # Two steps of AdamW move every weight by up to 2e-2; the rounding of the base changes the direction of few of them.
    apart = torch.cat([(half[name] - full[name]).flatten() for name in moved]).abs().mean()
    assert apart < 0.5 * torch.cat([full[name].flatten() for name in moved]).abs().mean()
    model = daguerre.load(saved)
    assert isinstance(model, LatentDiffusion)
    with_adapters(model, [load_lora(path)])


def test_a_float16_base_needs_loss_scaling(folder: Path):
    with pytest.raises(DaguerreError, match="base_dtype float16 needs --mixed-precision fp16"):
        LoraRecipe(folder, lora=LoraOptions(base_dtype="float16"))


def test_the_header_has_the_hash_of_the_tensors(make_tiny_model: Callable[..., LatentDiffusion], tmp_path: Path):
    model = make_tiny_model()
    file = save_lora(trained_network(model, LoraOptions(2)).value("x", {"note": "a"}), tmp_path / "x.safetensors", adapted_networks(model))
    content = file.read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert read_metadata(file)["sshs_model_hash"] == digest
    assert load_lora(file).record.short_hash == digest[:12]


def test_training_continues_from_a_lora(saved: str, folder: Path, tmp_path: Path):
    first = run(LoraRecipe(folder, tmp_path / "first", saved, lora=LoraOptions(2, 6.0, modules="attn2"), loop=LOOP))
    still = replace(LOOP, learning_rate=0)
    second = run(LoraRecipe(folder, tmp_path / "second", saved, lora=LoraOptions(init_lora=first), loop=still, cache=False))
    before, after = read_safetensors(first), read_safetensors(second)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_metadata(second)["ss_network_alpha"] == "6.0"


def test_a_lora_of_another_model_or_kind_is_refused(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    lora = trained_network(model, LoraOptions(2, modules="attn2.to_k")).value("ink", {})
    renamed = replace(lora, layers={name._replace(path="other"): layer for name, layer in lora.layers.items()})
    with pytest.raises(DaguerreError, match="'ink' has layers that tiny has not, such as"):
        layers_of(renamed, model)
    with pytest.raises(DaguerreError, match="No layer of the UNet matches --modules 'nothing'"):
        new_layers(model, LoraOptions(modules="nothing"))


def test_sdxl(peer, folder: Path, tmp_path: Path):
    _, path, model = peer("sdxl")
    before = [network_hash(network) for network in adapted_networks(model).values()]
    options = LoraOptions(2, train_text_encoder=True)
    file = run(LoraRecipe(folder, tmp_path / "xl", str(path), resolution=32, lora=options, loop=replace(LOOP, max_train_steps=2)))
    assert [network_hash(network) for network in adapted_networks(model).values()] == before
    tensors = read_safetensors(file)
    for prefix in ("lora_unet_input_blocks_", "lora_te1_text_model_", "lora_te2_text_model_"):
        ups = [tensor for name, tensor in tensors.items() if name.startswith(prefix) and name.endswith("lora_up.weight")]
        assert ups
        assert all(tensor.abs().max() > 0 for tensor in ups)  # every chosen layer has a gradient
    with_adapters(model, [load_lora(file)])


def test_the_noise_offset_is_one_value_per_channel(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    network = LoraNetwork(model, new_layers(model, LoraOptions()))
    plain, offset = (LoraTask(network, DiffusionLoss(), LoraOptions(noise_offset=share), ()) for share in (0.0, 0.5))
    randoms = (BatchRandom(torch.Generator().manual_seed(0), 2) for _ in range(2))
    first, second = (task.noise((6, 4, 4), random, torch.device("cpu")) for task, random in zip((plain, offset), randoms, strict=True))
    shift = second - first
    assert torch.allclose(shift, shift[..., :1, :1].expand_as(shift), atol=1e-6)
    assert len(shift[..., 0, 0].unique()) == 12


def test_captions_are_shuffled_after_the_kept_parts():
    generator = torch.Generator().manual_seed(0)
    shuffled = {shuffle_caption("sks fox, ink, red, snow", 1, generator) for _ in range(50)}
    assert len(shuffled) == 6
    assert all(text.startswith("sks fox, ") and sorted(text.split(", ")) == ["ink", "red", "sks fox", "snow"] for text in shuffled)
    assert shuffle_caption("one", 3, generator) == "one"


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"rank": 0}, "rank is 0"),
    ({"alpha": 0.0}, "alpha is 0"),
    ({"modules": "("}, "no regular expression"),
    ({"noise_offset": 2.0}, "noise_offset is 2"),
    ({"keep_tokens": -1}, "keep_tokens is -1"),
)


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(DaguerreError, match=message):
        LoraOptions(**options)
