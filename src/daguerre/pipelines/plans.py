"""How each task is done: a plan of passes for each kind of task, and the one table that says which."""

from collections.abc import Callable, Mapping
from typing import Any

from daguerre.pipelines.abilities import check_ability
from daguerre.pipelines.depth import depth_to_image
from daguerre.pipelines.hires import hires
from daguerre.pipelines.img2img import img2img
from daguerre.pipelines.inpaint import inpaint, outpaint
from daguerre.pipelines.pix2pix import instruct_pix2pix
from daguerre.pipelines.refiner import handed_over
from daguerre.pipelines.semantic import from_map
from daguerre.pipelines.stage import Pass, Plan, Stage, from_noise
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
from daguerre.pipelines.upscale import upscale
from daguerre.pipelines.variations import variations


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
