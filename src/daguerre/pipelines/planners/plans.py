"""How each task is done: a plan of passes for each kind of task, and the one table that says which."""

from collections.abc import Callable, Mapping
from typing import Any

from daguerre.pipelines.capabilities import check_capability
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, from_noise
from daguerre.pipelines.planners.depth2img import depth_to_image
from daguerre.pipelines.planners.hires import hires
from daguerre.pipelines.planners.image_variation import image_variation
from daguerre.pipelines.planners.img2img import img2img
from daguerre.pipelines.planners.inpaint import inpaint, outpaint
from daguerre.pipelines.planners.pix2pix import instruct_pix2pix
from daguerre.pipelines.planners.refiner import split_at_refiner
from daguerre.pipelines.planners.semantic import map_to_image
from daguerre.pipelines.planners.upscale import upscale
from daguerre.pipelines.tasks import (
    DepthToImage,
    Hires,
    ImageToImage,
    ImageVariation,
    Inpaint,
    InstructPix2Pix,
    MapToImage,
    Outpaint,
    Task,
    TextToImage,
    Upscale,
)


def txt2img(stage: GenerationContext, _task: TextToImage) -> SamplingPlan:
    """One pass from noise."""
    return SamplingPlan((Pass(stage.image_size, stage.sigmas(), from_noise(stage)),))


PLANS: Mapping[type[Task], Callable[[GenerationContext, Any], SamplingPlan]] = {
    TextToImage: txt2img,
    Hires: hires,
    ImageToImage: img2img,
    Inpaint: inpaint,
    Outpaint: outpaint,
    InstructPix2Pix: instruct_pix2pix,
    DepthToImage: depth_to_image,
    Upscale: upscale,
    ImageVariation: image_variation,
    MapToImage: map_to_image,
}


def make_plan(stage: GenerationContext) -> SamplingPlan:
    """The plan of the request's task. Raises DaguerreError where the model cannot do it, or its settings do not fit."""
    task = stage.request.task
    check_capability(stage.model, task)
    plan = PLANS[type(task)](stage, task)
    return plan if stage.model.refiner is None else split_at_refiner(plan, stage.model, stage.request.refiner_switch_at)
