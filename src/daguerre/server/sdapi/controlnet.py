"""The units of the web UI's ControlNet extension (sd-webui-controlnet), as clients send them in `alwayson_scripts.controlnet.args`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from daguerre.data.images import flatten_alpha
from daguerre.errors import nearest
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.images.preprocess import resize
from daguerre.pipelines.images.preprocessors import PREPROCESSORS, preprocess
from daguerre.pipelines.tasks import ResizeMode
from daguerre.server.errors import ApiError
from daguerre.server.storage.inputs import bytes_of_text, decode_upload, store_input
from daguerre.server.studio import Studio

NO_MODULE = ("", "none")
# The extension's names of preprocessors that we have.
PREPROCESSOR_NAMES: Mapping[str, str] = {
    "tile_resample": "tile",
    "recolor_luminance": "grey",
    "blur_gaussian": "blur",
    "color": "colours",
    "t2ia_color_grid": "colours",
    **{name: name for name in PREPROCESSORS},
}
UNIT_RESIZE_MODES: Mapping[Any, ResizeMode] = {
    0: "stretch", "just resize": "stretch", 1: "crop", "crop and resize": "crop", "scale to fit (inner fit)": "crop",
    2: "pad", "resize and fill": "pad", "envelope (outer fit)": "pad",
}  # fmt: skip
BALANCED, PROMPT_FIRST, CONTROL_FIRST = (0, "balanced"), (1, "my prompt is more important"), (2, "controlnet is more important")
# Fields without meaning here, with the values that ask for nothing.
UNUSED_IN_UNITS: Mapping[str, tuple[Any, ...]] = {
    "mask": (None, ""),
    "hr_option": (None, "Both", "both"),
    "inpaint_crop_input_image": (None, False, True),
}
READ = (
    "image", "input_image", "module", "model", "weight", "resize_mode", "guidance_start", "guidance_end", "control_mode", "enabled",
    "low_vram", "lowvram", "processor_res", "threshold_a", "threshold_b", "pixel_perfect", "save_detected_map",
)  # fmt: skip


@dataclass(frozen=True)
class ControlUnits:
    """Units, understood: adapters and maps of a request, warnings, and what `info` says about each."""

    adapters: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)


def is_controlnet(script: str) -> bool:
    """Whether the arguments of a script are units of ControlNets."""
    return script.lower() == "controlnet"


def read_units(studio: Studio, scripts: Mapping[str, Any] | None, size: tuple[int | None, int | None], first: str | None) -> ControlUnits:
    """The enabled units of a call.

    Args:
        size: (width, height) of the images, as far as it is known; maps are fitted to it.
        first: the image of img2img, which units without one use.

    Raises:
        ApiError: a ControlNet or a preprocessor is not here, or a value is wrong.
    """
    units = ControlUnits()
    for name, value in (scripts or {}).items():
        if is_controlnet(name):
            arguments = value.get("args") if isinstance(value, Mapping) else value
            for unit in arguments if isinstance(arguments, Sequence) and not isinstance(arguments, str) else []:
                if isinstance(unit, Mapping) and unit.get("enabled", True):
                    _add(studio, units, unit, size, first)
    return units


def _add(studio: Studio, units: ControlUnits, unit: Mapping[str, Any], size: tuple[int | None, int | None], first: str | None) -> None:
    number = len(units.parameters)
    name = str(unit.get("model") or "None").split(" [")[0]
    if name.lower() == "none":
        units.notes.append("A ControlNet unit without a model was ignored")
        return
    files = studio.adapters.files("controlnet")
    known = next((each for each in files if each.lower() == name.lower()), name)
    studio.adapters.find("controlnet", known)
    module = str(unit.get("module") or "none")
    mode = unit.get("control_mode", 0)
    mode = mode.lower() if isinstance(mode, str) else mode
    if mode in PROMPT_FIRST:
        units.notes.append("control_mode 'My prompt is more important' is not supported; the unit is balanced")
    ignored = [key for key, value in unit.items() if value not in UNUSED_IN_UNITS.get(key, (None,)) and key not in READ]
    units.notes.extend(f"{str(key)[:60]} of a ControlNet unit is not supported and was ignored" for key in ignored)
    image = _fitted(detected(_image(studio, unit, first), module), size, unit.get("resize_mode", 1))
    record = {
        "kind": "controlnet",
        "name": known,
        "scale": unit.get("weight", 1.0),
        "start": unit.get("guidance_start", 0.0),
        "end": unit.get("guidance_end", 1.0),
        "guess_mode": mode in CONTROL_FIRST,
    }
    units.adapters.append(record)
    units.images.append({"id": store_input(studio.store, InputImage.from_any(image))})
    shares = f"Guidance Start: {record['start']}, Guidance End: {record['end']}"
    units.parameters[f"ControlNet {number}"] = f"Module: {module}, Model: {known}, Weight: {record['scale']}, {shares}"


def detected(image: Image.Image, module: str) -> Image.Image:
    """The condition map that a preprocessor computes, by our name or the extension's. Raises ApiError if there is none of the name."""
    if module.lower() in NO_MODULE:
        return image
    if module not in PREPROCESSOR_NAMES:
        message = (
            f"There is no preprocessor {module[:60]!r}; there are none, {', '.join(PREPROCESSORS)}.{nearest(module, PREPROCESSOR_NAMES)}"
        )
        raise ApiError(422, message, code="module_not_found", param="module")
    return preprocess(image, PREPROCESSOR_NAMES[module])


def _image(studio: Studio, unit: Mapping[str, Any], first: str | None) -> Image.Image:
    """The RGB image of a unit, else the one of img2img."""
    given = unit.get("image") or unit.get("input_image") or first
    given = given.get("image") if isinstance(given, Mapping) else given
    if not isinstance(given, str):
        raise ApiError(422, "A ControlNet unit is enabled and has no image.", code="invalid_image", param="image")
    return flatten_alpha(decode_upload(bytes_of_text(given, "image"), "image", studio.config.limits.upload_pixels).image.pixels)


def _fitted(image: Image.Image, size: tuple[int | None, int | None], mode: Any) -> Image.Image:
    width, height = size
    if width is None or height is None:
        return image
    return resize(image, (width, height), UNIT_RESIZE_MODES.get(mode.lower() if isinstance(mode, str) else mode, "crop"))
