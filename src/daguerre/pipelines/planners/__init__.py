"""One planner for each task: a function from a request to a `SamplingPlan`. `PLANS` maps tasks to planners."""

from collections.abc import Callable, Mapping
from typing import Any

from daguerre.pipelines.capabilities import check_capability
from daguerre.pipelines.context import GenerationContext, SamplingPlan
from daguerre.pipelines.planners.colorize import colorize
from daguerre.pipelines.planners.depth2img import depth_to_image
from daguerre.pipelines.planners.image_variation import image_variation
from daguerre.pipelines.planners.img2img import img2img
from daguerre.pipelines.planners.inpaint import inpaint, outpaint
from daguerre.pipelines.planners.inversion import invert
from daguerre.pipelines.planners.pix2pix import instruct_pix2pix
from daguerre.pipelines.planners.refiner import split_at_refiner
from daguerre.pipelines.planners.semantic import map_to_image
from daguerre.pipelines.planners.txt2img import hires, txt2img
from daguerre.pipelines.planners.upscale import upscale
from daguerre.pipelines.tasks import (
    Colorize,
    DepthToImage,
    Hires,
    ImageToImage,
    ImageVariation,
    Inpaint,
    InstructPix2Pix,
    Inversion,
    LayoutToImage,
    MapToImage,
    Outpaint,
    Task,
    TextToImage,
    Upscale,
)

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
    Inversion: invert,
    LayoutToImage: txt2img,
    Colorize: colorize,
}


def make_plan(context: GenerationContext) -> SamplingPlan:
    """The plan for the request's task. Raises DaguerreError if the model cannot do it or its settings are wrong."""
    task = context.request.task
    check_capability(context.model, task)
    plan = PLANS[type(task)](context, task)
    return plan if context.model.refiner is None else split_at_refiner(plan, context.model, context.request.refiner_switch_at)
