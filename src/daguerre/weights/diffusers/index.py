"""`model_index.json`: the pipeline of the field that opens a folder, and the class of each part."""

from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNetConfig
from daguerre.weights.diffusers.configs import Json
from daguerre.weights.original.families import Family, task_of

GUIDANCE = "_guidance_scale"  # ours; other programs pass over what begins with an underscore

VARIATIONS = "StableDiffusionImageVariationPipeline"  # told pictures in the place of words
REFINER = "StableDiffusionXLImg2ImgPipeline"
UPSCALER = "StableDiffusionUpscalePipeline"
DEPTH = "StableDiffusionDepth2ImgPipeline"
PIPELINE_BY_TASK = {
    "text-to-image": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "instruct-pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "depth": DEPTH,
    "upscaling": UPSCALER,
}
XL_PIPELINES = {
    "text-to-image": "StableDiffusionXLPipeline",
    "inpainting": "StableDiffusionXLInpaintPipeline",
    "instruct-pix2pix": "StableDiffusionXLInstructPix2PixPipeline",
}
LATENT_DIFFUSION = {
    "text2img": "LDMTextToImagePipeline",
    "unconditional": "LDMPipeline",
    "churches": "LDMPipeline",
    "super-resolution": "LDMSuperResolutionPipeline",
}
LIBRARIES = {
    "CLIP": "transformers",
    "Bert": "transformers",
    "LDMBert": "latent_diffusion",
}  # by the first letters of a class; else diffusers
CHECKED = ("safety_checker", "feature_extractor")


def pipeline_of(family: Family, unet: UNetConfig, parts: Collection[str]) -> str | None:
    """The class that opens a model of these parts, by what its UNet is shown; None where the field has none."""
    task = task_of(family, unet)
    if "image_encoder" in parts:
        return VARIATIONS
    if family.name.startswith("ldm"):
        return LATENT_DIFFUSION.get(task)
    if family.name == "sdxl-refiner":
        return REFINER
    return (XL_PIPELINES if family.name == "sdxl" else PIPELINE_BY_TASK).get(task)


def own_guidance(index: Mapping[str, Any]) -> float:
    """The guidance that an index says suits its model; the usual one where it says none.

    Raises:
        DaguerreError: it is no finite number.
    """
    told = index.get(GUIDANCE, LatentDiffusion.default_guidance)
    if isinstance(told, bool) or not isinstance(told, int | float) or not isfinite(told):
        raise DaguerreError(f"The model's index says {GUIDANCE} is {told!r}; it is a number such as {LatentDiffusion.default_guidance:g}.")
    return float(told)


def model_index(pipeline: str, parts: Mapping[str, str], options: Mapping[str, Any] | None = None) -> Json:
    """The index of a folder.

    Args:
        parts: the class of each part that is there.
        options: of the pipeline, where they are not the usual ones.
    """
    absent: dict[str, Any] = {}
    if pipeline == REFINER:
        absent = {"text_encoder": [None, None], "tokenizer": [None, None]}
        usual: dict[str, Any] = {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
    elif pipeline in XL_PIPELINES.values():
        usual = {"force_zeros_for_empty_prompt": True}
    elif pipeline == UPSCALER:
        usual = {"max_noise_level": 350}
    elif pipeline == DEPTH:
        absent, usual = {"depth_estimator": [None, None], "feature_extractor": [None, None]}, {}
    elif pipeline in LATENT_DIFFUSION.values():
        usual = {}
    else:
        absent, usual = {name: [None, None] for name in CHECKED}, {"requires_safety_checker": False}
    there = {part: [_library(kind), kind] for part, kind in parts.items()}
    return {"_class_name": pipeline, "_diffusers_version": "0.35.0", **usual, **(options or {}), **absent, **there}


def _library(kind: str) -> str:
    return next((library for start, library in LIBRARIES.items() if kind.startswith(start)), "diffusers")
