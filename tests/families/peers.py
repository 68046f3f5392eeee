"""Tiny pipelines of diffusers at random init, one for each family, with the conventions of the published models."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from daguerre.conditioning import Tokenizer
from daguerre.conditioning.tokenizer import EOS

BASE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
CROSS = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
UNET = {"block_out_channels": (64, 128), "layers_per_block": 1, "cross_attention_dim": 64, "sample_size": 8, **CROSS}
SD1_UNET = {**UNET, "attention_head_dim": 8}
SD2_UNET = {**UNET, "attention_head_dim": (1, 2), "use_linear_projection": True}
SDXL_UNET = {
    **SD2_UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
UPSCALER_UNET = {
    **SD2_UNET,
    "in_channels": 7,
    "cross_attention_dim": 128,  # another width than the upper level's, as in the published one, where it tells what that attends to
    "attention_head_dim": 8,
    "num_class_embeds": 1000,
    "only_cross_attention": (True, False),
}


def randomized(network: nn.Module, seed: int) -> nn.Module:
    """Random weights, none zero or one, so that every path counts; the same each time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            spread = 0.1 * noise if parameter.ndim < 2 or "embedding" in name else noise / fan**0.5
            parameter.copy_(spread + (parameter.ndim == 1 and name.endswith("weight")))
    return network.eval()


def unet(seed: int = 1, **options: Any) -> Any:
    return randomized(diffusers.UNet2DConditionModel(**options), seed)


def autoencoder(levels: int = 2, scaling_factor: float = 0.18215) -> Any:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    widths = (32, 64, 64, 64)[:levels]
    return randomized(diffusers.AutoencoderKL(block_out_channels=widths, scaling_factor=scaling_factor, sample_size=16, **kinds), 2)


def text(width: int = 64, layers: int = 2, activation: str = "quick_gelu", projection: int | None = None, seed: int = 3) -> Any:
    """A text encoder with heads of width 64, as in all published ones."""
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=activation,
        projection_dim=projection or width,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return randomized((transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection)(config), seed)


@cache
def tokenizer(pad: str = EOS) -> transformers.CLIPTokenizer:
    with TemporaryDirectory() as folder:
        Tokenizer.clip(pad=pad).save(folder)
        return transformers.CLIPTokenizer.from_pretrained(folder)


def sd(kind: type = diffusers.StableDiffusionPipeline, prediction: str = "epsilon", *, second: bool = False, **unet_options: Any) -> Any:
    """A pipeline with one text encoder, of Stable Diffusion 1 or, with `second`, 2."""
    parts = {
        "unet": unet(**{**(SD2_UNET if second else SD1_UNET), **unet_options}),
        "vae": autoencoder(),
        "text_encoder": text(activation="gelu" if second else "quick_gelu"),
        "tokenizer": tokenizer("!" if second else EOS),
        "scheduler": diffusers.DDIMScheduler(**BASE, prediction_type=prediction, clip_sample=False, timestep_spacing="trailing"),
    }
    extra = {"depth_estimator": None, "feature_extractor": None} if kind is diffusers.StableDiffusionDepth2ImgPipeline else CHECKERS
    return quiet(kind(**parts, **extra))


CHECKERS = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sdxl(kind: type = diffusers.StableDiffusionXLPipeline, *, zeros: bool = True, **unet_options: Any) -> Any:
    return quiet(
        kind(
            **_xl_parts(64 + 128, 128 + 6 * 256, **unet_options),
            text_encoder=text(64),
            tokenizer=tokenizer(),
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        )
    )


def refiner() -> Any:
    return quiet(
        diffusers.StableDiffusionXLImg2ImgPipeline(
            **_xl_parts(128, 128 + 5 * 256, seed=11),
            text_encoder=None,
            tokenizer=None,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    )


def _xl_parts(context: int, vector: int, seed: int = 1, **unet_options: Any) -> dict[str, Any]:
    widths = {"cross_attention_dim": context, "projection_class_embeddings_input_dim": vector}
    return {
        "unet": unet(seed, **{**SDXL_UNET, **widths, **unet_options}),
        "vae": autoencoder(scaling_factor=0.13025),
        "text_encoder_2": text(128, 3, "gelu", projection=128, seed=4),
        "tokenizer_2": tokenizer("!"),
        "scheduler": diffusers.EulerDiscreteScheduler(**BASE, timestep_spacing="trailing"),
    }


def upscaler() -> Any:
    return quiet(
        diffusers.StableDiffusionUpscalePipeline(
            unet=unet(**UPSCALER_UNET),
            vae=autoencoder(3, 0.08333),
            text_encoder=text(128, activation="gelu"),
            tokenizer=tokenizer("!"),
            low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02),
            scheduler=diffusers.DDIMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.0001,
                beta_end=0.02,
                prediction_type="v_prediction",
                clip_sample=False,
                timestep_spacing="trailing",
            ),
            safety_checker=None,
            feature_extractor=None,
            max_noise_level=350,
        )
    )


def variations() -> Any:
    config = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, projection_dim=48
    )
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return quiet(
        diffusers.StableDiffusionImageVariationPipeline(
            unet=unet(**{**SD1_UNET, "cross_attention_dim": 48}),
            vae=autoencoder(),
            image_encoder=randomized(transformers.CLIPVisionModelWithProjection(config), 7),
            scheduler=diffusers.DDIMScheduler(**BASE, clip_sample=False, timestep_spacing="trailing"),
            safety_checker=None,
            feature_extractor=processor,
            requires_safety_checker=False,
        )
    )


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


PEERS: Mapping[str, Callable[[], Any]] = {
    "sd1": sd,
    "sd2": lambda: sd(second=True),
    "sd2-v": lambda: sd(prediction="v_prediction", second=True, sample_size=96),
    "sdxl": sdxl,
    "sdxl-refiner": refiner,
    "sd2-upscaler": upscaler,
    "sd1-variations": variations,
    "sdxl-inpainting": lambda: sdxl(diffusers.StableDiffusionXLInpaintPipeline, in_channels=9),
    "sd1-inpainting": lambda: sd(diffusers.StableDiffusionInpaintPipeline, in_channels=9),
    "sd1-pix2pix": lambda: sd(diffusers.StableDiffusionInstructPix2PixPipeline, in_channels=8),
    "sd2-depth": lambda: sd(diffusers.StableDiffusionDepth2ImgPipeline, second=True, in_channels=5),
}


def saved(pipeline: Any, folder: Path) -> Path:
    """The folder that diffusers writes."""
    pipeline.save_pretrained(folder)
    return folder
