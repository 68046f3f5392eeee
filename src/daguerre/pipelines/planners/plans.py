"""How each task is done: a plan of passes for each kind of task, and the one table that says which."""

from collections.abc import Callable, Mapping
from typing import Any

from daguerre.pipelines.capabilities import check_ability
from daguerre.pipelines.context import Pass, Plan, Stage, from_noise
from daguerre.pipelines.planners.depth2img import depth_to_image
from daguerre.pipelines.planners.hires import hires
from daguerre.pipelines.planners.image_variation import variations
from daguerre.pipelines.planners.img2img import img2img
from daguerre.pipelines.planners.inpaint import inpaint, outpaint
from daguerre.pipelines.planners.pix2pix import instruct_pix2pix
from daguerre.pipelines.planners.refiner import handed_over
from daguerre.pipelines.planners.semantic import from_map
from daguerre.pipelines.planners.upscale import upscale
from daguerre.pipelines.tasks import (
    DepthToImage,
    FromMap,
    Hires,
    ImageToImage,
    Inpaint,
    InstructPix2Pix,
    Outpaint,
    Task,
    TextToImage,
    Upscale,
    Variations,
)


def txt2img(stage: Stage, _task: TextToImage) -> Plan:
    """One pass from noise."""
    return Plan((Pass(stage.size, stage.sigmas(), from_noise(stage)),))


PLANS: Mapping[type[Task], Callable[[Stage, Any], Plan]] = {
    TextToImage: txt2img,
    Hires: hires,
    ImageToImage: img2img,
    Inpaint: inpaint,
    Outpaint: outpaint,
    InstructPix2Pix: instruct_pix2pix,
    DepthToImage: depth_to_image,
    Upscale: upscale,
    Variations: variations,
    FromMap: from_map,
}


def planned(stage: Stage) -> Plan:
    """The plan of the request's task. Raises DaguerreError where the model cannot do it, or its settings do not fit."""
    task = stage.request.task
    check_ability(stage.model, task)
    plan = PLANS[type(task)](stage, task)
    return plan if stage.model.refiner is None else handed_over(plan, stage.model, stage.request.refine_at)
