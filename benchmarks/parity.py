"""Every network of Stable Diffusion 1.5 and XL in its full size, with random weights, against diffusers and transformers in float32.

    python -m benchmarks.parity [--parts sd15-unet sdxl-text_2 …] [--out benchmarks/parity.md]

Each part runs in a separate process: Daguerre's network is built with random weights and evaluated, then the reference is built with the
same tensors and evaluated on the same inputs. Prepacked networks, which runs use, are evaluated as well. The error is the largest
difference divided by the largest magnitude of the reference output. Fails if an error is above 1e-5.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.processes import in_a_process, noise, peak, row
from benchmarks.random_models import randomly
from daguerre.cpu_threads import SPIN_COUNT
from daguerre.diffusion.conditioning import Conditioning
from daguerre.models import autoencoder_kl, clip
from daguerre.models import unet as unets
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn.cpu.prepack import prepack
from daguerre.nn.meta import shapes_only
from daguerre.weights.diffusers.clip_config import clip_text_json
from daguerre.weights.diffusers.unet_config import unet_json
from daguerre.weights.diffusers.vae_config import autoencoder_json

MAX_ERROR = 1e-5
BOS, EOS = 49406, 49407
Outputs = Mapping[str, Tensor]


class Part(NamedTuple):
    """build, build_reference: build the networks without weights. evaluate, evaluate_reference: their outputs for the same inputs, by name.
    Outputs of a variant have a comma in their name: "call, prepacked"."""

    build: Callable[[], nn.Module]
    build_reference: Callable[[], Any]
    evaluate: Callable[[Any], Outputs]
    evaluate_reference: Callable[[Any], Outputs]


def unet(config: UNetConfig, side: int) -> Part:
    """One call on latents with `side` pixels."""
    import diffusers

    library: Any = diffusers
    x, t = noise(1, 4, side, side), torch.full((1,), 500)
    context = noise(1, 77, config.context_width or 0, seed=1)
    more: dict[str, Any] = {}
    vector = None
    if config.vector_width is not None:  # SDXL: the pooled text, and six numbers that networks implementations embed
        from daguerre.nn.embeddings import sinusoidal

        pooled, numbers = noise(1, 1280, seed=2), torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]])
        vector = torch.cat([pooled, sinusoidal(numbers.flatten(), 256).reshape(1, -1)], dim=1)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}}

    def evaluate(network: UNet) -> Outputs:
        networks = {"call": network, "call, prepacked": prepack(network, copies=False)}
        return {what: each(x, t, Conditioning(context=context, vector=vector)) for what, each in networks.items()}

    return Part(
        lambda: UNet(config),
        lambda: library.UNet2DConditionModel.from_config(unet_json(config, side)),
        evaluate,
        lambda network: {"call": network(x, t, context, **more).sample},
    )


def vae(config: AutoencoderKLConfig, side: int) -> Part:
    """The moments of a picture of `side` pixels, and a picture of a latent."""
    import diffusers

    library: Any = diffusers
    x, z = noise(1, 3, side, side).tanh(), noise(1, config.latent_channels, side // 8, side // 8, seed=1)

    def evaluate(network: AutoencoderKL) -> Outputs:
        posterior = network.posterior(x)
        decode = prepack(network, copies=False).decode
        return {"encode": torch.cat([posterior.mean, posterior.logvar]), "decode": network.decode(z), "decode, prepacked": decode(z)}

    def evaluate_reference(network: Any) -> Outputs:
        posterior = network.encode(x).latent_dist
        return {"encode": torch.cat([posterior.mean, posterior.logvar]), "decode": network.decode(z / config.scaling_factor).sample}

    return Part(
        lambda: AutoencoderKL(config),
        lambda: library.AutoencoderKL.from_config(autoencoder_json(config, side)),
        evaluate,
        evaluate_reference,
    )


def text(config: CLIPTextConfig, pad: int) -> Part:
    """The last two hidden states of two token rows, and the pooled vectors."""
    import transformers

    ids = torch.randint(0, BOS, (2, config.length), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS
    for line, end in zip(ids, (9, config.length - 1), strict=True):
        line[end], line[end + 1 :] = EOS, pad
    given = clip_text_json(config, bos=BOS, pad=pad)
    kind: Any = transformers.CLIPTextModel if config.projection is None else transformers.CLIPTextModelWithProjection

    def evaluate(network: CLIPText) -> Outputs:
        states = network(ids)
        pooled = states.pooled if states.projected is None else states.projected
        return {"last states": states.last, "states before": states.hidden[-2], "pooled": pooled}

    def evaluate_reference(network: Any) -> Outputs:
        states = network(ids, output_hidden_states=True)
        pooled = states.pooler_output if config.projection is None else states.text_embeds
        return {"last states": states.last_hidden_state, "states before": states.hidden_states[-2], "pooled": pooled}

    return Part(lambda: CLIPText(config), lambda: kind(transformers.CLIPTextConfig(**given)), evaluate, evaluate_reference)


PARTS: dict[str, Callable[[], Part]] = {
    "sd15-text": lambda: text(clip.CLIP_L, EOS),
    "sd15-unet": lambda: unet(unets.SD1, 64),
    "sd15-vae": lambda: vae(autoencoder_kl.VAE_SD, 512),
    "sdxl-text": lambda: text(clip.CLIP_L, EOS),
    "sdxl-text_2": lambda: text(clip.OPENCLIP_BIGG, 0),
    "sdxl-unet": lambda: unet(unets.SDXL, 128),
    "sdxl-vae": lambda: vae(autoencoder_kl.VAE_SDXL, 1024),
}


@torch.no_grad()
def compared(name: str) -> dict[str, Any]:
    """The largest relative error of each output, the seconds of networks networks, and the peak memory of the process in GB."""
    part = PARTS[name]()
    with shapes_only():
        network = part.build()
    randomly(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as files are read
    start = time.perf_counter()
    outputs = part.evaluate(network)
    seconds = time.perf_counter() - start

    with shapes_only():
        reference = part.build_reference()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    adopt(reference.eval(), network.state_dict())
    start = time.perf_counter()
    expected_outputs = part.evaluate_reference(reference)
    reference_seconds = time.perf_counter() - start
    errors = {}
    for what, output in outputs.items():
        expected = expected_outputs[what.partition(",")[0]]
        errors[what] = ((output - expected).abs().max() / expected.abs().max()).item()
    return {
        "errors": errors,
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "peak": peak(),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def adopt(reference: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Assign the tensors to the reference without copying; all names and shapes must match."""
    if not any(name.startswith("text_model.") for name in reference.state_dict()):  # transformers' name in memory lacks it
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    reference.load_state_dict(state, strict=True, assign=True)
    for module in reference.modules():  # not in the state dict: positions 0, 1, 2, …
        if "position_ids" in module._buffers:
            module.position_ids = torch.arange(module.position_ids.shape[1])[None]  # type: ignore[union-attr, index]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/parity.md"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(compared(options.one)))
        return
    heads = "part", "parameters", "output", "largest relative error", "daguerre, s", "reference, s", "peak, GB"
    lines = [row(heads), row("---" for _ in heads)]
    print("\n".join(lines))
    worst = 0.0
    for name in options.parts:
        found = in_a_process("benchmarks.parity", "--one", name, GOMP_SPINCOUNT=SPIN_COUNT)  # as the commands set it
        for what, error in found["errors"].items():
            worst = max(worst, error)
            lines.append(
                row((name, f"{found['parameters']:,}", what, f"{error:.1e}", found["seconds"], found["reference_seconds"], found["peak"]))
            )
            print(lines[-1], flush=True)
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    about = " ".join((__doc__ or "").split("\n\n")[2].split())
    about += " Seconds are for all outputs of a part, for Daguerre including the prepacked ones."
    command = f"`python -m benchmarks.parity --parts {' '.join(options.parts)}`; {where}."
    title, table = "# The full-sized networks against the reference", "\n".join(lines)
    options.out.write_text(f"{title}\n\n{about}\n\n{command}\n\n{table}\n")
    if not worst <= MAX_ERROR:
        sys.exit(f"The largest relative error is {worst:.1e}; at most {MAX_ERROR:.0e} is allowed.")


if __name__ == "__main__":
    main()
