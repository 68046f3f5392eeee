"""Latent diffusion before Stable Diffusion: every published kind of model opens from one file, and its images equal those of the
reference networks in the pipeline of the authors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL as ReferenceKL
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.autoencoders.vq_model import VQModel as ReferenceVQ
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig as ReferenceBertConfig
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]

import daguerre
from daguerre.cli.main import main
from daguerre.conditioning import WordPiece
from daguerre.conditioning.class_map_image import LayoutConditioner
from daguerre.diffusion import generators, randn_per_image
from daguerre.diffusion.schedule import ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.ldm_bert import LDMBertConfig
from daguerre.models.spatial_rescaler import SpatialRescaler, SpatialRescalerConfig
from daguerre.models.unet import UNetConfig
from daguerre.pipelines.tasks import Inpaint, MapToImage, Upscale
from daguerre.weights import load_diffusion, save
from daguerre.weights.convert import convert
from daguerre.weights.diffusers.scheduler_config import schedule_json
from daguerre.weights.diffusers.unet_config import unet_json
from daguerre.weights.diffusers.vae_config import autoencoder_json, vq_json
from daguerre.weights.inspect import inspect
from tests.tolerance import NETWORK_TERMS, assert_rounded
from tests.weights import checkpoints

UNCONDITIONAL = UNetConfig(in_channels=3, out_channels=3, channels=(64, 128), blocks=1, depth=(1, 1), heads=(2, 4), context_width=None)
CONDITIONAL = replace(UNCONDITIONAL, context_width=48)
F8 = AutoencoderKLConfig(channels=(32, 32, 64, 64), blocks=1)
TEXT = LDMBertConfig(width=48, layers=2, heads=1, head_width=64, mlp_width=96)
BOXES = replace(TEXT, vocab_size=101, length=11)
STEPS, SEED, SIZE = 4, 7, 32


def opened(folder: Path, tensors: dict[str, Tensor], family: str, **options: Any) -> LatentDiffusion:
    """Write and open a checkpoint, and check that all of its keys are used."""
    path = checkpoints.write(folder / "model.safetensors", tensors)
    report = inspect(path)
    assert report.family == family
    assert not report.unmatched_keys + report.missing_keys + report.wrong_shapes
    return load_diffusion(path, device="cpu", **options)


def generate(model: LatentDiffusion, prompt: str = "", guidance: float = 1.0, size: int | None = SIZE, **changes: Any) -> Tensor:
    """The image (3, H, W) in [−1, 1], before rounding."""
    *_, last = daguerre.stream(
        model,
        prompt=prompt,
        guidance_scale=guidance,
        steps=STEPS,
        seed=SEED,
        sampler="euler",
        spacing="trailing",
        width=size,
        height=size,
        **changes,
    )
    assert last.images is not None
    return last.decoder.decode(last.x)[0]


def noise(model: LatentDiffusion, size: int = SIZE) -> Tensor:
    side = size // model.autoencoder.downsample_factor
    return randn_per_image(generators([SEED]), (model.unet.config.out_channels, side, side))


def ddim(config: ScheduleConfig) -> Any:
    return DDIMScheduler.from_config(schedule_json(config, "epsilon"))


def sample_ddim(predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, config: ScheduleConfig) -> Tensor:
    """DDIM with η = 0, the sampler of the authors."""
    scheduler = ddim(config)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t), t, x).prev_sample
    return x


def reference_unet(model: LatentDiffusion) -> Any:
    config = model.unet.config
    reference: Any
    if config.context_width is not None:
        reference = UNet2DConditionModel.from_config(unet_json(config, 16))
    else:
        kind = {"resblock": "resnet", "conv": "conv"}[config.resample]
        reference = UNet2DModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            down_block_types=tuple("AttnDownBlock2D" if depth else "DownBlock2D" for depth in config.depth),
            up_block_types=tuple("AttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(config.depth)),
            attention_head_dim=config.channels[0] // config.heads[0],
            attn_norm_num_groups=32,
            downsample_type=kind,
            upsample_type=kind,
            resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        )
    reference.load_state_dict(model.unet.state_dict())
    return reference.eval()


def reference_first_stage(model: LatentDiffusion) -> Any:
    config: Any = model.autoencoder.config  # pyright: ignore[reportAttributeAccessIssue]
    kl = isinstance(config, AutoencoderKLConfig)
    reference: Any = ReferenceKL.from_config(autoencoder_json(config, SIZE)) if kl else ReferenceVQ.from_config(vq_json(config, SIZE))
    assert isinstance(model.autoencoder, nn.Module)
    reference.load_state_dict(model.autoencoder.state_dict())
    return reference.eval()


def decode(model: LatentDiffusion, z: Tensor) -> Tensor:
    scale = model.autoencoder.config.scaling_factor  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        return reference_first_stage(model).decode(z / scale).sample[0]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Equal up to the rounding of about ten networks: four guided steps and the decoder."""
    assert_rounded(found, wanted, 10 * NETWORK_TERMS)


def guided_output(unet: Any, x: Tensor, t: Tensor, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    a, b = (unet(x, t, encoder_hidden_states=each).sample for each in (conditional, unconditional))
    return b + scale * (a - b)


def test_text_to_image_matches_the_pipeline_of_diffusers(tmp_path: Path):
    unet = replace(CONDITIONAL, in_channels=4, out_channels=4, heads=(8, 8))
    model = opened(tmp_path, checkpoints.unet(unet) | checkpoints.autoencoder(F8) | checkpoints.ldm_text(TEXT), "ldm-text2img")
    assert model.autoencoder.config.scaling_factor == 0.18215  # pyright: ignore[reportAttributeAccessIssue]
    WordPiece.bert().save(tmp_path)
    bert = LDMBertModel(ReferenceBertConfig(encoder_layers=2, encoder_ffn_dim=96, encoder_attention_heads=1, d_model=48)).eval()
    bert.load_state_dict(model.conditioner.encoder.state_dict())  # pyright: ignore[reportFunctionMemberAccess]
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    pipeline: Any = LDMTextToImagePipeline(
        vqvae=reference_first_stage(model),
        bert=bert,
        tokenizer=tokenizer,
        unet=reference_unet(model),
        scheduler=ddim(model.schedule.config),
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a virus monster is playing guitar, oil on canvas"
    latents = noise(model)
    reference = pipeline(prompt, SIZE, SIZE, STEPS, 5.0, latents=latents, output_type="np").images
    ours = generate(model, prompt, 5.0)
    assert_close((ours / 2 + 0.5).clamp(0, 1), torch.from_numpy(reference[0]).movedim(-1, 0))


def test_text_to_image_with_a_codebook_is_another_family(tmp_path: Path):
    model = opened(tmp_path, checkpoints.unet(CONDITIONAL) | checkpoints.vq_model() | checkpoints.ldm_text(TEXT), "ldm-text2img-vq")
    assert (model.unet.config.heads, model.schedule.config.beta_end) == ((2, 4), 0.0195)


@pytest.mark.parametrize("first_stage", ["codes", "kl"])
def test_unconditional_models_match_the_reference(tmp_path: Path, first_stage: str):
    if first_stage == "codes":
        tensors, family = checkpoints.unet(UNCONDITIONAL) | checkpoints.vq_model(), "ldm-unconditional"
    else:  # as in the churches model: other blocks, another scale
        churches = replace(UNCONDITIONAL, in_channels=4, out_channels=4, heads=(8, 8), scale_shift=True, resample="resblock")
        tensors = checkpoints.unet(churches) | checkpoints.autoencoder() | {"scale_factor": torch.tensor(0.2237)}
        family = "ldm-churches"
    model = opened(tmp_path, tensors, family)
    unet = reference_unet(model)
    z = sample_ddim(lambda x, t: unet(x, t).sample, noise(model), model.schedule.config)
    assert_close(generate(model), decode(model, z))


def test_a_class_conditional_model_matches_the_reference(tmp_path: Path):
    embedder = nn.Module()
    embedder.embedding = nn.Embedding(11, 48)
    config = replace(CONDITIONAL, heads=(1, 1))
    model = opened(tmp_path, checkpoints.unet(config) | checkpoints.vq_model() | checkpoints.condition(embedder), "ldm-class")
    unet, table = reference_unet(model), embedder.embedding.weight
    z = sample_ddim(lambda x, t: guided_output(unet, x, t, table[None, 3:4], table[None, 10:], 3.0), noise(model), model.schedule.config)
    assert_close(generate(model, "3", 3.0), decode(model, z))
    with pytest.raises(DaguerreError, match="number from 0 to 9"):
        generate(model, "10")


def test_layout_to_image_matches_the_reference(tmp_path: Path):
    tensors = checkpoints.unet(CONDITIONAL) | checkpoints.vq_model() | checkpoints.ldm_text(BOXES)
    model = opened(tmp_path, tensors, "ldm-layout")
    assert isinstance(model.conditioner, LayoutConditioner)
    # 101 tokens: 10×10 positions, and one for no object. Object 25 has corners (0.1·9, 0.3·9) and (0.6·9, 9), rounded, and so on.
    tokens = [25, 3 * 10 + 1, 9 * 10 + 5, 7, 0 * 10 + 5, 4 * 10 + 9, 100, 100, 100, 0, 99]
    prompt = "25 0.1 0.3 0.6 1; 7 0.6 0 1 0.4"
    assert model.conditioner.tokens(prompt.replace("; ", "\n")) == tokens
    bert = LDMBertModel(
        ReferenceBertConfig(
            vocab_size=101, max_position_embeddings=11, encoder_layers=2, encoder_ffn_dim=96, encoder_attention_heads=1, d_model=48
        )
    ).eval()
    bert.load_state_dict(model.conditioner.encoder.state_dict())
    with torch.no_grad():
        context = bert(torch.tensor([tokens]))[0]
    unet = reference_unet(model)
    z = sample_ddim(lambda x, t: unet(x, t, encoder_hidden_states=context).sample, noise(model), model.schedule.config)
    assert_close(generate(model, prompt), decode(model, z))
    for wrong in ("cat 0 0 1 1", "5 0.5 0 0.4 1", "5 0 0 1", "5 0 0 1 1.2", "100 0 0 1 1"):
        with pytest.raises(DaguerreError, match="not an object of a layout"):
            model.conditioner([wrong])
    with pytest.raises(DaguerreError, match="has 4 objects; this model allows at most 3"):
        model.conditioner(["1 0 0 1 1;" * 4])


def random_image(side: int, seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None] / 127.5 - 1


def test_super_resolution_matches_the_pipeline_of_diffusers(tmp_path: Path):
    config, first_stage = replace(UNCONDITIONAL, in_channels=6), checkpoints.vq_model()
    model = opened(tmp_path, checkpoints.unet(config) | first_stage, "ldm-super-resolution")
    pipeline: Any = LDMSuperResolutionPipeline(reference_first_stage(model), reference_unet(model), ddim(model.schedule.config))
    pipeline.set_progress_bar_config(disable=True)
    small = random_image(16)
    reference = pipeline(pixels(small), 1, STEPS, generator=torch.Generator().manual_seed(SEED), output_type="np").images
    ours = generate(model, size=None, task=Upscale(small))
    assert_close((ours / 2 + 0.5).clamp(0, 1), torch.from_numpy(reference[0]).movedim(-1, 0))


def test_inpainting_is_conditioned_on_the_masked_image(tmp_path: Path):
    config = replace(UNCONDITIONAL, in_channels=7, resample="resblock", heads=(8, 8))
    vq = checkpoints.vq_model()
    with_second_copy = vq | {
        name.replace("first_stage_model", "cond_stage_model"): tensor.clone() for name, tensor in vq.items()
    }  # as published
    model = opened(tmp_path, checkpoints.unet(config) | with_second_copy, "ldm-inpainting")
    image, mask = random_image(SIZE), Image.new("L", (SIZE, SIZE))
    mask.paste(255, (8, 8, 24, 20))
    hole = torch.from_numpy(np.array(mask) > 0).float()[None, None]
    unet, first_stage = reference_unet(model), reference_first_stage(model)
    with torch.no_grad():
        # The script of the authors sets the hole to 0 in [0, 1], then maps everything to [−1, 1].
        masked = (1 - hole) * (pixels(image) / 2 + 0.5) * 2 - 1
        c = first_stage.encode(masked).latents
        cc = F.interpolate(hole * 2 - 1, size=c.shape[-2:])
    condition = torch.cat([c, cc], dim=1)
    z = sample_ddim(lambda x, t: unet(torch.cat([x, condition], dim=1), t).sample, noise(model), model.schedule.config)
    assert_close(generate(model, task=Inpaint(image, mask)), decode(model, z))


def test_semantic_synthesis_matches_the_reference(tmp_path: Path):
    config = replace(UNCONDITIONAL, in_channels=6, heads=(8, 8))
    rescaler = SpatialRescaler(SpatialRescalerConfig(classes=9, stages=1))
    model = opened(tmp_path, checkpoints.unet(config) | checkpoints.vq_model() | checkpoints.condition(rescaler), "ldm-semantic")
    classes = np.random.default_rng(0).integers(0, 9, (SIZE, SIZE), dtype=np.uint8)
    with torch.no_grad():
        shares = F.interpolate(F.one_hot(torch.from_numpy(classes).long()).movedim(-1, 0)[None].float(), scale_factor=0.5, mode="bilinear")
        condition = F.conv2d(shares, rescaler.channel_mapper.weight)
    unet = reference_unet(model)
    z = sample_ddim(lambda x, t: unet(torch.cat([x, condition], dim=1), t).sample, noise(model), model.schedule.config)
    assert_close(generate(model, task=MapToImage(Image.fromarray(classes))), decode(model, z))
    for wrong, words in ((Image.fromarray(classes + 1), "this model has 0 to 8"), (random_image(SIZE), "has colours")):
        with pytest.raises(DaguerreError, match=words):
            generate(model, task=MapToImage(wrong))
    with pytest.raises(DaguerreError, match=r"a model for semantic.*does from-map"):
        generate(model)


def test_the_layout_command_accepts_objects_and_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    boxes = checkpoints.write(
        tmp_path / "boxes.safetensors", checkpoints.unet(CONDITIONAL) | checkpoints.vq_model() | checkpoints.ldm_text(BOXES)
    )
    rescaler = SpatialRescaler(SpatialRescalerConfig(classes=9, stages=1))
    semantic = (
        checkpoints.unet(replace(UNCONDITIONAL, in_channels=6, heads=(8, 8))) | checkpoints.vq_model() | checkpoints.condition(rescaler)
    )
    maps = checkpoints.write(tmp_path / "maps.safetensors", semantic)
    Image.fromarray(np.full((SIZE, SIZE), 4, dtype=np.uint8)).save(tmp_path / "map.png")
    rest = ["--size", str(SIZE), "--steps", "2", "--device", "cpu"]
    assert main(["layout", "25 0 0 1 1", "7 0 0.5 1 1", "--model", str(boxes), "--out", str(tmp_path / "a.png"), *rest]) == 0
    assert main(["layout", "--map", str(tmp_path / "map.png"), "--model", str(maps), "--out", str(tmp_path / "b.png"), *rest]) == 0
    for name in ("a", "b"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (SIZE, SIZE)
    assert main(["layout", "--model", str(boxes)]) == 2
    assert "--map" in capsys.readouterr().err


# The same models in folders that diffusers saved.


def saved(pipeline: Any, folder: Path) -> LatentDiffusion:
    pipeline.save_pretrained(folder)
    model = daguerre.load(folder, device="cpu")
    assert isinstance(model, LatentDiffusion)
    return model


def test_a_text_to_image_folder_saved_by_diffusers_opens(tmp_path: Path):
    unet = replace(CONDITIONAL, in_channels=4, out_channels=4, heads=(4, 4))  # differs from the rule of its family; the config stores it
    model = opened(tmp_path, checkpoints.unet(unet) | checkpoints.autoencoder() | checkpoints.ldm_text(TEXT), "ldm-text2img", heads=4)
    bert = LDMBertModel(ReferenceBertConfig(encoder_layers=2, encoder_ffn_dim=96, encoder_attention_heads=1, d_model=48)).eval()
    bert.load_state_dict(model.conditioner.encoder.state_dict())  # pyright: ignore[reportFunctionMemberAccess]
    WordPiece.bert().save(tmp_path)
    pipeline = LDMTextToImagePipeline(
        vqvae=reference_first_stage(model),
        bert=bert,
        tokenizer=BertTokenizerFast(str(tmp_path / "vocab.txt")),
        unet=reference_unet(model),
        scheduler=ddim(model.schedule.config),
    )
    loaded = saved(pipeline, tmp_path / "folder")
    assert loaded.unet.config.heads == (4, 4)
    assert loaded.sample_size == 32
    assert torch.equal(generate(loaded, "a fish", 3.0), generate(model, "a fish", 3.0))


def test_unconditional_folders_open_under_new_and_old_names(tmp_path: Path):
    model = opened(tmp_path, checkpoints.unet(UNCONDITIONAL) | checkpoints.vq_model(), "ldm-unconditional")
    pipeline = LDMPipeline(reference_first_stage(model), reference_unet(model), ddim(model.schedule.config))
    assert torch.equal(generate(saved(pipeline, tmp_path / "folder")), generate(model))
    for path in ((tmp_path / "folder/unet"), (tmp_path / "folder/vqvae")):
        file = path / "diffusion_pytorch_model.safetensors"
        old = {}
        for name, tensor in load_file(file).items():
            for new, old_name in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
                name = name.replace(f".{new}.", f".{old_name}.")
            old[name] = tensor
        checkpoints.write(file, old)
    assert torch.equal(generate(load_diffusion(tmp_path / "folder", device="cpu")), generate(model))


def test_a_super_resolution_folder_saved_by_diffusers_opens(tmp_path: Path):
    model = opened(tmp_path, checkpoints.unet(replace(UNCONDITIONAL, in_channels=6)) | checkpoints.vq_model(), "ldm-super-resolution")
    pipeline = LDMSuperResolutionPipeline(reference_first_stage(model), reference_unet(model), ddim(model.schedule.config))
    loaded = saved(pipeline, tmp_path / "folder")
    assert torch.equal(*(generate(each, size=None, task=Upscale(random_image(16))) for each in (loaded, model)))


# The same models in folders written by `convert`, which keeps every byte, and by `save`.

PIPELINES = {
    "LDMPipeline": (UNCONDITIONAL, checkpoints.vq_model, {}),
    "LDMSuperResolutionPipeline": (replace(UNCONDITIONAL, in_channels=6), checkpoints.vq_model, {}),
    "LDMTextToImagePipeline": (
        replace(CONDITIONAL, in_channels=4, out_channels=4, heads=(8, 8)),
        checkpoints.autoencoder,
        checkpoints.ldm_text(replace(TEXT, heads=1)),
    ),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_converted_folder_opens_in_diffusers_and_converts_back_to_the_same_bytes(tmp_path: Path, kind: str):
    config, first_stage, words = PIPELINES[kind]
    tensors = checkpoints.unet(config) | first_stage() | words
    single = checkpoints.write(tmp_path / "model.safetensors", tensors)
    folder = convert(single, tmp_path / "folder")
    checkpoints.assert_file_equals(convert(folder, tmp_path / "back.safetensors"), tensors)
    model = load_diffusion(single, device="cpu")
    for each in (folder, save(model, tmp_path / "saved")):
        loaded: Any = load_diffusion(each, device="cpu")
        assert (loaded.unet.config, loaded.autoencoder.config, loaded.sample_size) == (
            model.unet.config,
            model.autoencoder.config,
            model.sample_size,
        )
        reference: Any = DiffusionPipeline.from_pretrained(each)
        assert type(reference).__name__ == kind
        x, t = torch.randn(1, config.in_channels, 8, 8), torch.tensor([300])
        cond = loaded.conditioner(["a fish"])
        kwargs = {} if cond.context is None else {"encoder_hidden_states": cond.context}
        with torch.no_grad():
            assert_rounded(loaded.unet(x, t, cond), reference.unet(x, t, **kwargs).sample, NETWORK_TERMS)
            z = torch.randn(1, config.out_channels, 8, 8)
            wanted = reference.vqvae.decode(z / loaded.autoencoder.config.scaling_factor).sample
            assert_rounded(loaded.autoencoder.decode(z), wanted, NETWORK_TERMS)
            if words:
                ids = reference.tokenizer(["a fish"], padding="max_length", max_length=77, return_tensors="pt").input_ids
                assert_rounded(cond.context, reference.bert(ids)[0], NETWORK_TERMS)
