"""Requests of the Stable Diffusion web UI as requests of ours.

Every field that has no meaning here is named in the warning of the answer's `info`, unless it has the value that means nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from daguerre.data.images import flatten_alpha
from daguerre.diffusion import SAMPLERS, parse_sampler_name, parse_spacing_name
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.images.preprocess import resize
from daguerre.pipelines.request import MAX_SEED, Request
from daguerre.server.errors import ApiError
from daguerre.server.models import DEFAULT_FACTOR
from daguerre.server.sdapi.controlnet import is_controlnet, read_units
from daguerre.server.storage.inputs import bytes_of_text, decode_upload, store_input
from daguerre.server.studio import Studio

FAR = 2.0  # a side more than this factor from the model's own is warned of
# Fields without meaning here, with the values that ask for nothing. All other values are named in the warning.
UNUSED: Mapping[str, tuple[Any, ...]] = {
    "styles": (None, []),
    "seed_resize_from_h": (None, 0, -1),
    "seed_resize_from_w": (None, 0, -1),
    "restore_faces": (None, False),
    "do_not_save_samples": (None, True, False),
    "do_not_save_grid": (None, True, False),
    "s_min_uncond": (None, 0),
    "s_churn": (None, 0),
    "s_tmax": (None, 0),
    "s_tmin": (None, 0),
    "s_noise": (None, 1),
    "script_args": (None, []),
    "firstphase_width": (None, 0),
    "firstphase_height": (None, 0),
    "hr_checkpoint_name": (None, "", "Use same checkpoint"),
    "hr_sampler_name": (None, "", "Use same sampler"),
    "hr_scheduler": (None, "", "Use same scheduler"),
    "hr_prompt": (None, ""),
    "hr_negative_prompt": (None, ""),
    "hr_second_pass_steps": (None, 0),
    "hr_cfg": (None, 0, 1),
    "hr_additional_modules": (None, [], ["Use same choices"]),
    "hr_distilled_cfg": (None, 0, 3.5),
    "distilled_cfg_scale": (None, 0, 3.5),
    "refiner_checkpoint": (None, "", "None"),
    "refiner_switch_at": (None, 0, 0.8, 1),
    "disable_extra_networks": (None, False),
    "comments": (None, {}),
    "firstpass_image": (None, ""),
    "send_images": (None, True, False),
    "save_images": (None, True, False),
    "force_task_id": (None, ""),
    "infotext": (None, ""),
    "image_cfg_scale": (None, 0, 1.5),
    "initial_noise_multiplier": (None, 1, 0),
    "inpainting_fill": (None, 1),
    "latent_mask": (None, ""),
    "mask_round": (None, True),
    "override_settings_restore_afterwards": (None, True, False),
}
OVERRIDES: Mapping[str, tuple[Any, ...]] = {"sd_vae": (None, "", "Automatic", "None")}  # with the values that ask for nothing
KEPT_OVERRIDES = ("sd_model_checkpoint", "CLIP_stop_at_last_layers")
WEB_UI_DEFAULTS: Mapping[str, Any] = {"steps": 50, "guidance_scale": 7.0}  # of the web UI, where no few-step file needs others
AUTOMATIC = ("", "automatic", "none", "use same scheduler")
SDAPI_RESIZE_MODES = {0: "stretch", 1: "crop", 2: "pad"}  # of the web UI; 3, latent upscaling, is named in the warning


class SdapiBody(BaseModel):
    """What txt2img and img2img share. Numbers may be texts, as some programs send them."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = Field("", max_length=1_100_000)
    negative_prompt: str | None = Field("", max_length=1_100_000)
    seed: int | None = -1
    subseed: int | None = -1
    subseed_strength: float | None = 0
    sampler_name: str | None = Field(None, max_length=200)
    sampler_index: str | None = Field(None, max_length=200)
    scheduler: str | None = Field(None, max_length=200)
    batch_size: int | None = Field(1, ge=1, le=64)
    n_iter: int | None = Field(1, ge=1, le=64)
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    tiling: bool | None = None
    eta: float | None = None
    fast: bool | None = None
    clip_skip: int | None = None
    override_settings: dict[str, Any] | None = None
    script_name: str | None = Field(None, max_length=200)
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool | None = True
    enable_hr: bool | None = False
    denoising_strength: float | None = 0.75
    hr_scale: float | None = 2.0
    hr_upscaler: str | None = Field(None, max_length=200)
    hr_resize_x: int | None = 0
    hr_resize_y: int | None = 0


class ImageToImageBody(SdapiBody):
    """What img2img has on top."""

    init_images: list[str] | None = None
    mask: str | None = None
    mask_blur: int | None = None
    mask_blur_x: int | None = 4
    mask_blur_y: int | None = 4
    resize_mode: int | None = 0
    inpainting_mask_invert: int | None = 0
    inpaint_full_res: bool | None = True
    inpaint_full_res_padding: int | None = 0
    include_init_images: bool | None = False


@dataclass(frozen=True)
class SdapiCall:
    """A call, understood. warnings: what it asked for and does not get. parameters: of extensions, for `info`."""

    request: Request
    model: str
    batch_size: int
    warnings: tuple[str, ...]
    parameters: Mapping[str, str]


def read_sdapi_call(studio: Studio, body: SdapiBody, current: Mapping[str, Any]) -> SdapiCall:
    """A call from its body.

    Args:
        current: the options that apply, such as the current model.

    Raises:
        ApiError: a value is wrong; names it.
    """
    if body.script_name not in (None, "", "None"):
        raise ApiError(
            422, f"Script {body.script_name!r} not found. Scripts are not supported.", code="unsupported_script", param="script_name"
        )
    overrides = body.override_settings or {}
    model = studio.models.find(str(overrides.get("sd_model_checkpoint") or studio.model)).name
    facts = studio.models.facts(model)
    factor, own = (facts.factor, facts.sample_size) if facts else (DEFAULT_FACTOR, None)
    warnings = unsupported_fields(body, overrides)
    width, height, size_notes = requested_size(body, factor, own)
    sampler, spacing, eta = requested_sampler(body)
    clip_skip = overrides.get("CLIP_stop_at_last_layers", current.get("CLIP_stop_at_last_layers"))
    values: dict[str, Any] = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt or "",
        "eta": eta,
        "fast": bool(body.fast),
        "seed": _seed(body.seed),
        "num_images": (body.batch_size or 1) * (body.n_iter or 1),
        "width": width,
        "height": height,
        "tiling": "both" if body.tiling else "none",
        "clip_skip": clip_skip if isinstance(clip_skip, int) and clip_skip > 1 else body.clip_skip if (body.clip_skip or 1) > 1 else None,
    }
    if body.subseed_strength and body.subseed is not None:
        values["variation"] = {"seed": _seed(body.subseed) if body.subseed >= 0 else 0, "strength": body.subseed_strength}
    if isinstance(body, ImageToImageBody):
        task, notes = image_task(studio, body, (width, height), factor)
    else:
        task, notes = text_task(body, (width or own or 512, height or own or 512))
    if task["name"] == "inpaint" and task["crop_padding"] is None:  # the images have the size already
        values |= {"width": None, "height": None}
    first = (getattr(body, "init_images", None) or [None])[0]
    units = read_units(studio, body.alwayson_scripts, (width or own, height or own), first)
    values |= {"task": task, "adapters": units.adapters, "control_images": units.images}
    chosen = {"steps": body.steps, "guidance_scale": body.cfg_scale, "sampler": sampler, "spacing": spacing}
    values |= {name: value for name, value in chosen.items() if value is not None}
    request = studio.read_request(values, model=model, defaults=WEB_UI_DEFAULTS)
    return SdapiCall(request, model, body.batch_size or 1, (*warnings, *size_notes, *notes, *units.notes), units.parameters)


def unsupported_fields(body: SdapiBody, overrides: Mapping[str, Any]) -> list[str]:
    """A warning for each field that asks for something that does not exist here."""
    extra = body.model_extra or {}
    names = [name for name, value in extra.items() if value not in UNUSED.get(name, (None,))]
    if not getattr(body, "mask", None):
        names = [name for name in names if not name.startswith("inpaint")]
    others = [name for name, value in overrides.items() if name not in KEPT_OVERRIDES and value not in OVERRIDES.get(name, ())]
    warnings = [f"{name[:60]} is not supported and was ignored" for name in names]
    warnings += [f"override_settings.{name[:60]} is not supported and was ignored" for name in others]
    for name, value in (body.alwayson_scripts or {}).items():
        if script_is_active(value) and not is_controlnet(name):
            warnings.append(f"alwayson_scripts.{name[:60]} is not supported and was ignored")
    return warnings


def script_is_active(value: Any) -> bool:
    """Whether the arguments of an extension ask for anything: some clients send empty or disabled ones each time."""
    arguments = value.get("args", []) if isinstance(value, Mapping) else value
    listed = arguments if isinstance(arguments, Sequence) and not isinstance(arguments, str) else [arguments]
    return any(_asks_for_something(argument) for argument in listed)


def _asks_for_something(argument: Any) -> bool:
    if isinstance(argument, Mapping):
        return argument.get("enabled", argument.get("enable", True)) is not False
    return argument not in (None, False, "")


def requested_size(body: SdapiBody, factor: int, own: int | None) -> tuple[int | None, int | None, list[str]]:
    """(width, height, warnings): None is the model's own; sides are rounded to multiples of `factor`."""
    sides, notes = [], []
    for name in ("width", "height"):
        side = getattr(body, name)
        if side is not None and side < 1:
            raise ApiError(422, f"{name} is {side}; it is 1 or more.", code="invalid_request", param=name)
        rounded = side if side is None else max(round(side / factor), 1) * factor
        if rounded != side:
            notes.append(f"{name} was rounded from {side} to {rounded}, a multiple of {factor}")
        sides.append(rounded)
    far = [f"{side}" for side in sides if side and own and not own / FAR <= side <= own * FAR]
    if far and own:
        notes.append(f"{sides[0]}x{sides[1]} is far from the model's own {own}x{own}; omit width and height to get it")
    return sides[0], sides[1], notes


def requested_sampler(body: SdapiBody) -> tuple[str | None, str | None, float | None]:
    """(sampler, spacing, eta) of a call; eta counts only for samplers that add noise anyway, and for DDIM.

    Raises:
        ApiError: there is no such sampler or schedule.
    """
    name = body.sampler_name or body.sampler_index
    try:
        choice = parse_sampler_name(name) if name and name.lower() not in AUTOMATIC else None
    except DaguerreError:
        raise ApiError(404, "Sampler not found", code="sampler_not_found", param="sampler_name") from None
    spacing = None
    if body.scheduler and body.scheduler.lower() not in AUTOMATIC:
        try:
            spacing = parse_spacing_name(body.scheduler)
        except DaguerreError as error:
            raise ApiError(422, f"Scheduler not found: {error}", code="scheduler_not_found", param="scheduler") from None
    if choice is None:
        return None, spacing, None
    if choice.sampler.inversion:
        raise ApiError(404, "Sampler not found", code="sampler_not_found", param="sampler_name")
    # Clients send 1 with every sampler, which would make one without noise stochastic.
    uses_eta = choice.sampler.accepts("eta") and (choice.sampler.stochastic or (name or "").upper().startswith("DDIM"))
    return choice.sampler.name, spacing or choice.spacing, body.eta if uses_eta else None


def text_task(body: SdapiBody, size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    """The task of txt2img: with a hires fix or without."""
    if not body.enable_hr:
        return {"name": "txt2img"}, []
    scale, notes = float(body.hr_scale or 2.0), []
    if body.hr_resize_x or body.hr_resize_y:
        scale = max((body.hr_resize_x or 0) / size[0], (body.hr_resize_y or 0) / size[1])
        notes.append(f"the hires fix enlarges both sides {scale:.3g} times")
    upscaler, note = hires_upscaler(body.hr_upscaler)
    strength = body.denoising_strength if body.denoising_strength is not None else 0.75
    return {"name": "hires", "scale": scale, "strength": strength, "upscaler": upscaler}, [*notes, *note]


def hires_upscaler(name: str | None) -> tuple[str, list[str]]:
    """Our upscaler of a name; names of networks that are not here stand for Lanczos, with a warning."""
    plain = (name or "Latent").lower()
    if plain.startswith("latent"):
        return "latent", [] if plain == "latent" else [f"hr_upscaler {name} is bilinear here"]
    if plain in ("lanczos", "none", "nearest"):
        return "lanczos", [] if plain == "lanczos" else [f"hr_upscaler {name} is Lanczos here"]
    return "lanczos", [f"hr_upscaler {str(name)[:60]} is not here; Lanczos was used"]


def image_task(
    studio: Studio, body: ImageToImageBody, size: tuple[int | None, int | None], factor: int
) -> tuple[dict[str, Any], list[str]]:
    """The task of img2img, with a mask or without.

    Raises:
        ApiError: there is no image, or one cannot be read.
    """
    if not body.init_images:
        raise ApiError(404, "Init image not found", code="image_not_found", param="init_images")
    pixels = studio.config.limits.upload_pixels
    notes = [f"{len(body.init_images) - 1} of the init_images were ignored; one is used"] if len(body.init_images) > 1 else []
    image = flatten_alpha(decode_upload(bytes_of_text(body.init_images[0], "init_images"), "init_images", pixels).image.pixels)
    mode = SDAPI_RESIZE_MODES.get(body.resize_mode or 0, "stretch")
    if body.resize_mode not in (None, *SDAPI_RESIZE_MODES):
        notes.append(f"resize_mode {body.resize_mode} is not supported; the image is stretched")
    strength = body.denoising_strength if body.denoising_strength is not None else 0.75
    if not body.mask:
        stored = store_input(studio.store, InputImage.from_any(image))
        return {"name": "img2img", "image": {"id": stored}, "strength": strength, "resize_mode": mode}, notes
    mask = decode_upload(bytes_of_text(body.mask, "mask"), "mask", pixels).image.pixels
    layer = mask.getchannel("A") if mask.mode == "RGBA" else mask.convert("L")
    if abs(layer.width * image.height - layer.height * image.width) > 0.02 * layer.height * image.width:
        message = f"The mask is {layer.width}x{layer.height} and the image {image.width}x{image.height}; give both the same proportions."
        raise ApiError(422, message, code="invalid_request", param="mask")
    # Only the masked part is processed, at the size that is asked for, or the whole image, fitted to that size.
    padding = max(body.inpaint_full_res_padding or 0, 0) if body.inpaint_full_res else None
    target = _fitting(image.size, size, factor) if padding is None else image.size
    layer = resize(layer.convert("RGB"), target, mode).convert("L")  # type: ignore[arg-type]
    if body.inpainting_mask_invert:
        layer = ImageOps.invert(layer)
    blur = body.mask_blur if body.mask_blur is not None else max(body.mask_blur_x or 0, body.mask_blur_y or 0)
    if blur > 0:
        layer = layer.filter(ImageFilter.GaussianBlur(min(blur, 64)))
    image = resize(image, target, mode)  # type: ignore[arg-type]
    ids = {
        "image": {"id": store_input(studio.store, InputImage.from_any(image))},
        "mask": {"id": store_input(studio.store, InputImage.from_any(layer))},
    }
    return {"name": "inpaint", **ids, "strength": strength, "mask_blur": 0, "crop_padding": padding}, notes


def _fitting(own: tuple[int, int], asked: tuple[int | None, int | None], factor: int) -> tuple[int, int]:
    """The size that the image and its mask are fitted to: as asked, else their own in multiples of `factor`."""
    sides = (side or max(round(length / factor), 1) * factor for side, length in zip(asked, own, strict=True))
    return next(sides), next(sides)


def _seed(seed: int | None) -> int:
    """A seed; −1 and every other negative one stands for any."""
    return -1 if seed is None or seed < 0 else seed % MAX_SEED


def sampler_names() -> list[str]:
    """The names of all samplers that generate images, as the web UI writes them where it has them."""
    names = [sampler.aliases[0] if sampler.aliases else sampler.name for sampler in SAMPLERS.values() if not sampler.inversion]
    return [*names, "DDIM"]
