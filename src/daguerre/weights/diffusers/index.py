"""`model_index.json`: the diffusers pipeline that opens a folder, and the class of each part."""

from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.model_task import ModelTask
from daguerre.models.unet import UNetConfig
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.folder_names import PIXEL_PIPELINES
from daguerre.weights.original.families import Family, task_of

GUIDANCE_KEY = "_guidance_scale"  # not a field of diffusers, which ignores names with an underscore

IMAGE_VARIATION_PIPELINE = "StableDiffusionImageVariationPipeline"
REFINER_PIPELINE = "StableDiffusionXLImg2ImgPipeline"
UPSCALE_PIPELINE = "StableDiffusionUpscalePipeline"
DEPTH_PIPELINE = "StableDiffusionDepth2ImgPipeline"
SD_PIPELINES: dict[ModelTask | None, str] = {
    "text-to-image": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "instruct-pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "depth": DEPTH_PIPELINE,
    "upscaling": UPSCALE_PIPELINE,
}
SDXL_PIPELINES: dict[ModelTask | None, str] = {
    "text-to-image": "StableDiffusionXLPipeline",
    "inpainting": "StableDiffusionXLInpaintPipeline",
    "instruct-pix2pix": "StableDiffusionXLInstructPix2PixPipeline",
}
LDM_PIPELINES = {  # by family
    "ldm-text2img": "LDMTextToImagePipeline",
    "ldm-text2img-vq": "LDMTextToImagePipeline",
    "ldm-unconditional": "LDMPipeline",
    "ldm-churches": "LDMPipeline",
    "ldm-layout": "LDMTextToImagePipeline",
    "ldm-super-resolution": "LDMSuperResolutionPipeline",
}
# The library of a class, by the start of its name; other classes belong to diffusers.
LIBRARIES = {"CLIP": "transformers", "Bert": "transformers", "LDMBert": "latent_diffusion"}


def pipeline_class(family: Family, unet: UNetConfig, parts: Collection[str]) -> str | None:
    """The diffusers pipeline for a model with these parts; None if diffusers has none."""
    if "image_encoder" in parts:
        return IMAGE_VARIATION_PIPELINE
    if family.name == "sdxl-refiner":
        return REFINER_PIPELINE
    if family.name.startswith("ldm"):
        return LDM_PIPELINES.get(family.name)
    return (SDXL_PIPELINES if family.name == "sdxl" else SD_PIPELINES).get(task_of(family, unet))


def stored_guidance(index: Mapping[str, Any]) -> float:
    """The default guidance scale that an index stores, or the usual one.

    Raises:
        DaguerreError: it is not a finite number.
    """
    guidance = index.get(GUIDANCE_KEY, LatentDiffusion.default_guidance)
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not isfinite(guidance):
        raise DaguerreError(
            f"The model's index sets {GUIDANCE_KEY} to {guidance!r}; give a number such as {LatentDiffusion.default_guidance:g}."
        )
    return float(guidance)


def model_index(pipeline: str, parts: Mapping[str, str], options: Mapping[str, Any] | None = None) -> Json:
    """The content of `model_index.json`.

    Args:
        parts: the class of each part.
        options: of the pipeline, if they are not its defaults.
    """
    absent: tuple[str, ...] = ()
    defaults: dict[str, Any] = {}
    if pipeline == REFINER_PIPELINE:
        absent = ("text_encoder", "tokenizer")
        defaults = {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
    elif pipeline in SDXL_PIPELINES.values():
        defaults = {"force_zeros_for_empty_prompt": True}
    elif pipeline == UPSCALE_PIPELINE:
        defaults = {"max_noise_level": 350}
    elif pipeline == DEPTH_PIPELINE:
        absent = ("depth_estimator", "feature_extractor")
    elif pipeline not in (*LDM_PIPELINES.values(), *PIXEL_PIPELINES):
        absent, defaults = ("safety_checker", "feature_extractor"), {"requires_safety_checker": False}
    classes = {name: [None, None] for name in absent} | {part: [_library(name), name] for part, name in parts.items()}
    return {"_class_name": pipeline, "_diffusers_version": "0.35.0", **defaults, **(options or {}), **classes}


def _library(class_name: str) -> str:
    return next((library for start, library in LIBRARIES.items() if class_name.startswith(start)), "diffusers")
