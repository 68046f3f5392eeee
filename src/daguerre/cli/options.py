"""Options that several commands share. Each dataclass is one group of the help text; nothing here imports torch."""

import re
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from secrets import randbelow
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.pipelines.request import Request, Variation
from daguerre.pipelines.tasks import Task, TextToImage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from daguerre.diffusion.denoiser import Prediction

RANDOM_SEED = -1
DtypeName = Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
Dtype = Literal["auto", DtypeName]
EngineName = Literal["torch", "compile", "openvino"]
AnimationContent = Literal["x0", "x_t", "both"]
PredictionFlag = Literal["auto", "epsilon", "v_prediction", "sample"]
PREDICTIONS_BY_FLAG: "Mapping[str, Prediction | None]" = {"auto": None, "epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # as in the file names of the hub
OptionalText = Annotated[str | None, tyro.conf.arg(help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")]
OptionalInt = Annotated[int | None, tyro.conf.arg(help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(help_behavior_hint="")]
ModelName = Annotated[
    str | None,
    tyro.conf.arg(
        aliases=["-m"],
        help="A name from `daguerre models`, a folder, a checkpoint file, or OWNER/NAME on the hub. Default: the embedded model.",
        help_behavior_hint="",
    ),
]
Device = Annotated[str | None, tyro.conf.arg(help="cpu or cuda. Default: cuda if there is a GPU.", help_behavior_hint="")]
ComputeDtype = Annotated[Dtype, tyro.conf.arg(help="Precision that the networks compute in; auto is the fastest one here.")]
Threads = Annotated[int | None, tyro.conf.arg(help="Number of CPU threads. Default: one for each free core.", help_behavior_hint="")]
Offline = Annotated[bool, tyro.conf.arg(help="Use only hub files that are already downloaded.")]
Seed = Annotated[int, tyro.conf.arg(aliases=["-s"], help="Seed of the first image; later images count up from it. -1 takes a random seed.")]
NumImages = Annotated[int, tyro.conf.arg(aliases=["-n"], help="Number of images for each prompt.")]
Size = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="WxH",
        help="Size in pixels: one side (64) or WIDTHxHEIGHT (96x64). Default: the model's size, or one that fits the input image.",
        help_behavior_hint="",
    ),
]
Width = Annotated[int | None, tyro.conf.arg(aliases=["-W"], help="Width in pixels, instead of --size.", help_behavior_hint="")]
Height = Annotated[int | None, tyro.conf.arg(aliases=["-H"], help="Height in pixels, instead of --size.", help_behavior_hint="")]
Out = Annotated[
    Path | None,
    tyro.conf.arg(
        aliases=["-o"], help="Output file: .png, .webp or .jpg. Several images get -1, -2, ... after the name.", help_behavior_hint=""
    ),
]
OutFileOrFolder = Annotated[
    Path | None,
    tyro.conf.arg(
        aliases=["-o"],
        help="Output file: .png, .webp or .jpg. Several images get -1, -2, ... after the name. For a folder of inputs: the output folder.",
        help_behavior_hint="",
    ),
]
ImagePath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
Prompts = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT [PROMPT ...]", help_behavior_hint="")]
NegativePrompt = Annotated[str, tyro.conf.arg(help="What the images should not show.", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How many images, and how their edges meet."""

    num_images: NumImages = Request.num_images
    tiling: Literal["none", "both", "x", "y"] = Request.tiling
    """Axes along which the images tile seamlessly."""


@dataclass(frozen=True, kw_only=True)
class SizedImageOptions(ImageOptions):
    """The same, for commands with a free size."""

    size: Size = None
    width: Width = None
    height: Height = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """From noise to latents."""

    seed: Seed = Request.seed
    steps: OptionalInt = None
    """Number of sampling steps; more is slower and finer. Default: 20, or what the few-step file needs."""
    preset: OptionalText = None
    """Settings of a few-step file, such as lcm or lightning-4; none disables them. Default: what the file's name says."""
    sampler: OptionalText = Request.sampler
    """Sampler, as `daguerre models --samplers` lists them; names such as "DPM++ 2M Karras" work. Default: the model's, else dpmpp_2m."""
    spacing: OptionalText = Request.spacing
    """Noise levels to visit, as `daguerre models --samplers` lists them. Default: what the sampler's name contains, else trailing."""
    guidance_scale: OptionalFloat = Request.guidance_scale
    """Classifier-free guidance scale; 1 disables guidance. Default: the model's own."""
    guidance_rescale: float = Request.guidance_rescale
    """Rescale guided predictions against overexposure, 0 to 1 (Lin et al. 2023)."""
    guidance_interval: Annotated[str | None, tyro.conf.arg(metavar="LOW:HIGH", help_behavior_hint="")] = None
    """Guide only between these shares of the steps, such as 0.1:0.8 (Kynkäänniemi et al. 2024)."""
    cfg_plus_plus: bool = Request.cfg_plus_plus
    """Use CFG++ (Chung et al. 2024), with --sampler euler and a guidance scale from 0 to 1."""
    clip_skip: OptionalInt = Request.clip_skip
    """CLIP layer that encodes the prompt, counted from the last, which is 1."""
    dynamic_threshold: OptionalFloat = Request.dynamic_threshold
    """Quantile for dynamic thresholding, above 0 up to 1; only for models of pixels (Saharia et al. 2022)."""
    eta: OptionalFloat = Request.eta
    """Share of fresh noise in each step, 0 to 1, for samplers that support it. Default: the sampler's own."""
    fast: bool = Request.fast
    """Forecast the predicted image in about half of the steps instead of computing it; from 10 steps on."""
    variation_seed: OptionalInt = None
    """Mix in the noise of this seed; for several images it counts up."""
    variation_strength: OptionalFloat = None
    """How far to move towards the noise of --variation-seed: 0 is the image itself, 1 is that of the other seed."""

    def variation(self) -> Variation | None:
        """The variation that these options describe.

        Raises:
            DaguerreError: one of its two options is missing, or out of range.
        """
        if self.variation_seed is None and self.variation_strength is None:
            return None
        if self.variation_seed is None or self.variation_strength is None:
            raise DaguerreError("--variation-seed and --variation-strength belong together; give both, such as 8 and 0.3.")
        return Variation(self.variation_seed, self.variation_strength)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: ModelName = None
    device: Device = None
    dtype: ComputeDtype = "auto"
    threads: Threads = None
    offline: Offline = False


@dataclass(frozen=True, kw_only=True)
class PipelineOptions(ModelOptions):
    """The same, with what replaces or extends parts of a diffusion model."""

    vae: OptionalText = None
    """Autoencoder to use instead of the model's own: a folder, a file, or OWNER/NAME on the hub."""
    refiner: OptionalText = None
    """Second model for the last steps, such as SDXL's refiner; given like --model."""
    refiner_switch_at: float = Request.refiner_switch_at
    """Share of the steps after which the refiner takes over."""
    prediction_type: PredictionFlag = "auto"
    """What the model predicts, if its file does not state it."""
    engine: EngineName = "torch"
    """What computes the UNet: torch; compile, for GPUs; or openvino, for CPUs. See docs/speed.md."""
    low_memory: bool = Request.low_memory
    """Use less memory and more time: sequential offload, one condition at a time, tiled decoding. Automatic if a run would not fit."""


TimedAdapters = Annotated[
    tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE[:SCALE[:START-END]]", help_behavior_hint="")
]
ImagePaths = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="IMAGE", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """LoRAs and embeddings; see docs/adapters.md."""

    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE[:SCALE]", help_behavior_hint="")] = ()
    """A LoRA, or its name in --lora-dir; :SCALE is its strength (default 1), :TEXT:UNET two strengths. Repeat it for several."""
    lora_dir: OptionalPath = None
    """Folder of LoRAs, for names in --lora and for tags in the prompt such as <lora:ink:0.8>."""
    embedding: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE[:WORD]", help_behavior_hint="")] = ()
    """A textual-inversion embedding; prompts use it by its file name, or by WORD. Repeat it for several."""
    embedding_dir: OptionalPath = None
    """Folder of embeddings; those whose names occur in a prompt are used."""


@dataclass(frozen=True, kw_only=True)
class ControlledAdapterOptions(AdapterOptions):
    """LoRAs, embeddings, and adapters with images; see docs/adapters.md."""

    controlnet: TimedAdapters = ()
    """A ControlNet, its strength (default 1), and the shares of the steps in which it applies. Repeat it for several."""
    t2i_adapter: TimedAdapters = ()
    """A T2I-Adapter, in the same way."""
    control_image: ImagePaths = ()
    """The condition map of a ControlNet or T2I-Adapter, in the same order, such as an image of `daguerre preprocess`."""
    ip_adapter: TimedAdapters = ()
    """An IP-Adapter, which takes an image as a prompt, in the same way."""
    ip_image: ImagePaths = ()
    """The image for an IP-Adapter. Repeat it for several images or adapters."""
    image_encoder: OptionalPath = None
    """CLIP image encoder of the IP-Adapters: a folder or a file. Default: the folder `image_encoder` next to the adapter."""
    guess_mode: bool = False
    """Apply ControlNets to the prompt's condition only, and less in the upper layers; works without a prompt."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What to write."""

    out: OutFileOrFolder = None
    grid: bool = False
    """Also save a labelled grid of all images (always saved for several prompts)."""
    animation: OptionalPath = None
    """Also save an animation of the sampling: .webp or .png."""
    animation_content: AnimationContent = "x0"
    """What the animation shows after each step: the predicted image (x0), the noisy one (x_t), or both next to each other."""
    preview: OptionalPath = None
    """Write a small preview of each step to this file while sampling."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of every command that generates images with a diffusion model; `request_for` passes on those that `Request` has, too."""

    image_options: Annotated[ImageOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="image", help="")] = field(
        default_factory=ImageOptions
    )
    sampling: Annotated[SamplingOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help="")] = field(default_factory=SamplingOptions)
    loading: Annotated[PipelineOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="model", help="")] = field(
        default_factory=PipelineOptions
    )
    adapters: Annotated[ControlledAdapterOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="adapter", help="")] = field(
        default_factory=ControlledAdapterOptions
    )
    output: Annotated[OutputOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help="")] = field(default_factory=OutputOptions)

    def request_for(self, prompts: "Sequence[str]", task: Task | None = None, negative_prompt: str = "") -> Request:
        """The request that these options describe, for prompts and a task.

        Raises:
            DaguerreError: an option is out of range, or two contradict each other.
        """
        from daguerre.cli.adapters import with_adapter_options

        request = build_request(prompts, task, self.image_options, self.sampling, self.loading, negative_prompt=negative_prompt)
        return with_preset(with_adapter_options(request, self.adapters), self.sampling, self.loading.model)


@dataclass(frozen=True, kw_only=True)
class SizedGenerationOptions(GenerationOptions):
    """The same, for commands with a free size."""

    image_options: Annotated[SizedImageOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="image", help="")] = field(
        default_factory=SizedImageOptions
    )


def build_request(prompts: "Sequence[str]", task: Task | None, *groups: object, negative_prompt: str = "") -> Request:
    """A request from groups of options: every option with the name of a request field sets that field.

    Raises:
        DaguerreError: a value is out of range, or two contradict each other.
    """
    given = {option.name: getattr(group, option.name) for group in groups for option in fields(group)}  # pyright: ignore[reportArgumentType]
    values = {option.name: given[option.name] for option in fields(Request) if option.name in given}
    if "size" in given:
        values |= dict(zip(("width", "height"), parse_size(given["size"], given["width"], given["height"]), strict=True))
    if values.get("steps") is None:
        values.pop("steps", None)
    if values["seed"] == RANDOM_SEED:
        values["seed"] = randbelow(2**32)
    for group in groups:
        if isinstance(group, SamplingOptions):
            values["variation"] = group.variation()
            values["guidance_interval"] = parse_interval(group.guidance_interval)
    prompt = prompts[0] if len(prompts) == 1 else tuple(prompts)
    return Request(**{**values, "prompt": prompt, "negative_prompt": negative_prompt, "task": task or TextToImage()})


def with_preset(request: Request, sampling: SamplingOptions, model: str | None) -> Request:
    """The request with the settings of --preset, or of the few-step file among the model and the LoRAs; explicit options stay. Prints them.

    Raises:
        DaguerreError: there is no such preset, several are possible, or the guidance scale does not suit it.
    """
    from daguerre.adapters.presets import choose_preset, find_preset

    if sampling.preset == "none":
        return request
    if sampling.preset is None:
        loras = [record.path for record in request.adapters if record.kind == "lora" and record.scale]
        remedy = "choose with --preset, or --preset none for an ordinary file"
        chosen = choose_preset([Path(path) for path in (model, *loras) if path is not None], remedy)
        if chosen is None:
            return request
        preset, source = chosen[0], f" of '{chosen[1].name}'"
    else:
        preset, source = find_preset(sampling.preset), ""
    if problem := preset.guidance_problem(sampling.guidance_scale):
        raise DaguerreError(f"{problem}; remove it, or give --preset none.")
    given = [name for name in preset.fields if getattr(sampling, name) is not None]
    request = replace(request, **preset.fields_without(given))
    guidance = f"guidance scale {request.guidance_scale:g}"
    what = f"sampler {request.sampler}, spacing {request.spacing or 'of the sampler'}, {request.steps} steps, {guidance}"
    print(f"daguerre: preset {preset.name}{source}: {what}.", file=sys.stderr)
    return request


def dtype_by_name(name: str) -> "torch.dtype":
    """The dtype of a `DtypeName`: torch.float16 for "float16" and "fp16"."""
    import torch  # here, because importing it takes a second

    return getattr(torch, DTYPE_ALIASES.get(name, name))


def parse_size(size: str | None, width: int | None = None, height: int | None = None) -> tuple[int | None, int | None]:
    """(width, height) from `--size` ("64" or "96x64") or from `--width` and `--height`; None is not given.

    Raises:
        DaguerreError: the text is no size, or both forms are given.
    """
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise DaguerreError(f"--size {size} and --width or --height set the same thing; give one of the two forms.")
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", size.strip().lower())
    if match is None:
        raise DaguerreError(f"--size is {size!r}; it is one side, such as 64, or WIDTHxHEIGHT, such as 96x64.")
    return int(match[1]), int(match[2] or match[1])


def parse_interval(interval: str | None) -> tuple[float, float] | None:
    """The shares of `--guidance-interval` LOW:HIGH.

    Raises:
        DaguerreError: the text is not two numbers.
    """
    if interval is None:
        return None
    match = re.fullmatch(r"(\d*\.?\d+):(\d*\.?\d+)", interval.strip())
    if match is None:
        raise DaguerreError(f"--guidance-interval is {interval!r}; it is LOW:HIGH, two shares of the steps such as 0.1:0.8.")
    return float(match[1]), float(match[2])


def slug(prompt: str) -> str:
    """A short file name from the letters and digits of a prompt; "image" if it has none."""
    return "-".join(re.findall(r"\w+", prompt.lower()))[:40].strip("-") or "image"
