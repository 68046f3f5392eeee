"""The pipeline of a request as a small graph: what a page draws while it runs, and what a saved image can be read as.

    prompt ─► conditioning ─► guidance ─► denoiser ─► sampler ─► decode ─► output
                        seed ─► noise ──────────────────┘ ▲
                        schedule ──────────────────────── ┘   image ─► encode ─► sampler, hires, refiner: where the task has them

The graph follows from the request; with a model it also has the shapes, the noise levels and the sizes.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from daguerre.adapters.record import MAPPED_KINDS
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Hires, Inpaint, Outpaint

if TYPE_CHECKING:
    from daguerre.models.latent_diffusion import LatentDiffusion

NodeKind = Literal[
    "prompt",
    "conditioning",
    "guidance",
    "denoiser",
    "seed",
    "noise",
    "schedule",
    "sampler",
    "image",
    "mask",
    "encode",
    "hires",
    "refiner",
    "adapter",
    "decode",
    "output",
]
ADAPTER_LABELS = {"lora": "LoRA", "controlnet": "ControlNet", "t2i-adapter": "T2I-Adapter", "ip-adapter": "IP-Adapter"}
MAX_DETAIL = 40  # characters


@dataclass(frozen=True)
class PlanNode:
    """One part of a pipeline. detail: a short text. fields: the fields of the request that set it."""

    id: str
    kind: NodeKind
    label: str
    detail: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class PlanGraph:
    """Nodes in the order in which they work, and edges (from, to) between their ids.

    sigmas: the noise levels that the first pass visits; empty without a model.
    """

    nodes: tuple[PlanNode, ...]
    edges: tuple[tuple[str, str], ...]
    sigmas: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"nodes": [asdict(node) for node in self.nodes], "edges": [list(edge) for edge in self.edges], "sigmas": list(self.sigmas)}

    def text(self) -> str:
        """One line for each node, with the nodes that it works on."""
        labels = {node.id: node.label for node in self.nodes}
        rows = []
        for node in self.nodes:
            sources = ", ".join(labels[start] for start, end in self.edges if end == node.id)
            rows.append((node.label, node.detail, f"from {sources}" if sources else ""))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        return "\n".join(f"{label:<{widths[0]}}  {detail:<{widths[1]}}  {sources}".rstrip() for label, detail, sources in rows)


def plan_graph(request: Request, model: "LatentDiffusion | None" = None) -> PlanGraph:
    """The graph of a request.

    model: adds what depends on it.

    Raises:
        DaguerreError: the model does not do what the request asks.
    """
    facts = _facts(request, model) if model is not None else _RequestFacts(request)
    nodes = [
        _node("prompt", "prompt", _short(request.prompts[0]), "prompt", "negative_prompt"),
        _node("conditioning", "text encoder", facts.conditioning, "clip_skip"),
        _node("guidance", "guidance", facts.guidance, "guidance_scale", "guidance_rescale", "guidance_interval", "cfg_plus_plus"),
        _node("seed", "seed", str(request.seed), "seed", "variation"),
        _node("noise", "noise", facts.noise, "width", "height", "num_images", "initial_noise"),
        _node("schedule", "schedule", facts.schedule, "spacing"),
        _node("denoiser", "UNet", facts.denoiser),
        _node("sampler", "sampler", facts.sampler, "sampler", "steps", "eta", "fast"),
    ]
    edges = [
        ("prompt", "conditioning"),
        ("conditioning", "guidance"),
        ("guidance", "denoiser"),
        ("denoiser", "sampler"),
        ("seed", "noise"),
        ("noise", "sampler"),
        ("schedule", "sampler"),
    ]
    _add_inputs(request, nodes, edges)
    _add_adapters(request, nodes, edges)
    last = "sampler"
    if isinstance(request.task, Hires):
        task = request.task
        nodes.append(_node("hires", "hires fix", f"×{task.scale:g}, strength {task.strength:g}, {task.upscaler}", "task"))
        edges += [("sampler", "hires"), ("denoiser", "hires")]
        last = "hires"
    if model is not None and model.refiner is not None:
        nodes.append(_node("refiner", "refiner", f"from {request.refiner_switch_at:.0%} of the steps", "refiner_switch_at"))
        edges.append((last, "refiner"))
        last = "refiner"
    nodes += [_node("decode", "decode", facts.decode, "tiling"), _node("output", "image", facts.output, "width", "height")]
    edges += [(last, "decode"), ("decode", "output")]
    if isinstance(request.task, Inpaint | Outpaint):  # what is kept is pasted byte by byte
        edges.append(("image", "output"))
    return PlanGraph(tuple(nodes), tuple(edges), facts.sigmas)


def result_size(request: Request, model: "LatentDiffusion") -> tuple[int, int]:
    """(width, height) in pixels of the images of a request."""
    from daguerre.pipelines.context import resolve_size
    from daguerre.pipelines.images.preprocess import working_size

    task, f = request.task, model.autoencoder.downsample_factor
    if isinstance(task, Hires):
        width, height = resolve_size(model, request)
        return round(width * task.scale / f) * f, round(height * task.scale / f) * f
    image = task.input_images.get("image") or task.input_images.get("depth")
    if image is None:
        return resolve_size(model, request)
    own = image.pixels.size
    if isinstance(task, Outpaint):
        left, top, right, bottom = task.margins
        return own[0] + left + right, own[1] + top + bottom
    if isinstance(task, Inpaint):
        return own
    return working_size(own, model.sample_size, f, request.width, request.height)


def _add_inputs(request: Request, nodes: list[PlanNode], edges: list[tuple[str, str]]) -> None:
    """The input images of the task."""
    images = request.task.input_images
    for name, image in images.items():
        size = f"{image.image.width}×{image.image.height}" if image.image else image.sha256[:8]
        nodes.insert(-1, _node("mask" if name == "mask" else "image", name, size, "task", node_id=name))
    if "image" in images:
        strength = getattr(request.task, "strength", None)
        nodes.insert(-1, _node("encode", "encode", "" if strength is None else f"strength {strength:g}", "task"))
        edges += [("image", "encode"), ("encode", "sampler")]
    edges += [(name, "sampler") for name in images if name != "image"]


def _add_adapters(request: Request, nodes: list[PlanNode], edges: list[tuple[str, str]]) -> None:
    """The adapters, each with its condition map if it has one."""
    maps = iter(request.control_images)
    for number, record in enumerate(request.adapters):
        node_id, target = f"adapter {number}", "conditioning" if record.kind == "embedding" else "denoiser"
        share = "" if (record.start, record.end) == (0, 1) else f", {record.start:.0%} to {record.end:.0%}"
        detail = record.name if record.kind == "embedding" else f"{record.name} ×{record.scale:g}{share}"
        before = next(i for i, node in enumerate(nodes) if node.id == target)
        nodes.insert(before, _node("adapter", ADAPTER_LABELS.get(record.kind, record.kind), _short(detail), "adapters", node_id=node_id))
        edges.append((node_id, target))
        if record.kind in MAPPED_KINDS and (image := next(maps, None)) is not None:
            size = f"{image.image.width}×{image.image.height}" if image.image else image.sha256[:8]
            nodes.insert(before, _node("image", "control map", size, "adapters", node_id=f"map {number}"))
            edges.append((f"map {number}", node_id))


class _RequestFacts:
    """What the nodes show, as far as it follows from the request alone."""

    def __init__(self, request: Request) -> None:
        self.conditioning = "" if request.clip_skip is None else f"layer {request.clip_skip} from the end"
        self.guidance = "the model's own" if request.guidance_scale is None else f"scale {request.guidance_scale:g}"
        self.noise = f"{request.num_images} images" if request.num_images > 1 else "1 image"
        self.schedule = request.spacing or "the model's own"
        self.denoiser = ""
        self.sampler = f"{request.sampler or 'the model’s own'}, {request.steps} steps"
        self.decode = "in tiles" if request.low_memory else ""
        self.output = f"{request.width}×{request.height}" if request.width and request.height else "the model's own size"
        self.sigmas: tuple[float, ...] = ()


def _facts(request: Request, model: "LatentDiffusion") -> _RequestFacts:
    """What the nodes show for a request and a model."""
    from daguerre.pipelines.context import GenerationContext

    context = GenerationContext.of(model, replace(request, adapters=(), control_images=()))
    resolved, facts = context.request, _RequestFacts(context.request)
    strength = getattr(request.task, "strength", None)
    sigmas = context.sigmas(1.0 if isinstance(request.task, Hires) or strength is None else strength)
    size = result_size(request, model)
    facts.conditioning = _conditioning(model)
    facts.noise = "×".join(map(str, (len(request.items), *context.latent_shape(size))))
    facts.schedule = f"{resolved.spacing}, σ {sigmas[0]:.4g} to {sigmas[-1]:.4g}"
    facts.denoiser = f"{model.name}, predicts {model.prediction}"
    facts.sampler = f"{resolved.sampler}, {max(len(sigmas) - 1, 0)} steps"
    facts.decode = f"×{context.downsample_factor}"
    facts.output = f"{size[0]}×{size[1]}"
    facts.sigmas = tuple(sigmas.tolist())
    return facts


def _conditioning(model: "LatentDiffusion") -> str:
    width = model.unet.config.context_width
    return "no prompt" if width is None else f"{width} channels"


def _node(kind: NodeKind, label: str, detail: str, *names: str, node_id: str | None = None) -> PlanNode:
    return PlanNode(node_id or kind, kind, label, detail, names)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_DETAIL else f"{text[: MAX_DETAIL - 1]}…"
