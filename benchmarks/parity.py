"""Every network of Stable Diffusion 1.5 and XL in its full size, with random weights, against diffusers and transformers in float32.

    python -m benchmarks.parity [--parts sd15-unet sdxl-text_2 …] [--out benchmarks/parity.md]

Each part has a process of its own: ours is built, filled and asked; then the reference is built around the same tensors and asked the
same. What a run computes by a packed twin is asked of that, too. The error is the largest difference divided by the largest magnitude of
the reference's answer. Fails where one is above 1e-5.
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

from benchmarks.measuring import in_a_process, noise, peak, row
from benchmarks.random_models import randomly
from daguerre.cli.main import SPINS
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

LARGEST = 1e-5
BOS, EOS = 49406, 49407
Answers = Mapping[str, Tensor]


class Part(NamedTuple):
    """ours, reference: build the networks without values. ask, ask_reference: their answers to the same questions, by name. What another
    way of ours answers stands behind a comma: "call, packed"."""

    ours: Callable[[], nn.Module]
    reference: Callable[[], Any]
    ask: Callable[[Any], Answers]
    ask_reference: Callable[[Any], Answers]


def unet(config: UNetConfig, side: int) -> Part:
    """One call at latents of `side` places."""
    import diffusers

    library: Any = diffusers
    x, t = noise(1, 4, side, side), torch.full((1,), 500)
    context = noise(1, 77, config.context_width or 0, seed=1)
    more: dict[str, Any] = {}
    vector = None
    if config.vector_width is not None:  # of SDXL: the pooled text, and six numbers that both embed by themselves
        from daguerre.nn.embeddings import sinusoidal

        pooled, numbers = noise(1, 1280, seed=2), torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]])
        vector = torch.cat([pooled, sinusoidal(numbers.flatten(), 256).reshape(1, -1)], dim=1)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}}

    def ask(network: UNet) -> Answers:
        both = {"call": network, "call, packed": prepack(network, copies=False)}
        return {what: each(x, t, Conditioning(context=context, vector=vector)) for what, each in both.items()}

    return Part(
        lambda: UNet(config),
        lambda: library.UNet2DConditionModel.from_config(unet_json(config, side)),
        ask,
        lambda network: {"call": network(x, t, context, **more).sample},
    )


def vae(config: AutoencoderKLConfig, side: int) -> Part:
    """The moments of a picture of `side` pixels, and a picture of a latent."""
    import diffusers

    library: Any = diffusers
    x, z = noise(1, 3, side, side).tanh(), noise(1, config.latent_channels, side // 8, side // 8, seed=1)

    def ask(network: AutoencoderKL) -> Answers:
        posterior = network.posterior(x)
        decode = prepack(network, copies=False).decode
        return {"encode": torch.cat([posterior.mean, posterior.logvar]), "decode": network.decode(z), "decode, packed": decode(z)}

    def ask_reference(network: Any) -> Answers:
        posterior = network.encode(x).latent_dist
        return {"encode": torch.cat([posterior.mean, posterior.logvar]), "decode": network.decode(z / config.scaling_factor).sample}

    return Part(
        lambda: AutoencoderKL(config), lambda: library.AutoencoderKL.from_config(autoencoder_json(config, side)), ask, ask_reference
    )


def text(config: CLIPTextConfig, pad: int) -> Part:
    """The last two layers' states of two rows of tokens, and the pooled vectors."""
    import transformers

    ids = torch.randint(0, BOS, (2, config.length), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS
    for line, end in zip(ids, (9, config.length - 1), strict=True):
        line[end], line[end + 1 :] = EOS, pad
    given = clip_text_json(config, bos=BOS, pad=pad)
    kind: Any = transformers.CLIPTextModel if config.projection is None else transformers.CLIPTextModelWithProjection

    def ask(network: CLIPText) -> Answers:
        states = network(ids)
        pooled = states.pooled if states.projected is None else states.projected
        return {"last states": states.last, "states before": states.hidden[-2], "pooled": pooled}

    def ask_reference(network: Any) -> Answers:
        states = network(ids, output_hidden_states=True)
        pooled = states.pooler_output if config.projection is None else states.text_embeds
        return {"last states": states.last_hidden_state, "states before": states.hidden_states[-2], "pooled": pooled}

    return Part(lambda: CLIPText(config), lambda: kind(transformers.CLIPTextConfig(**given)), ask, ask_reference)


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
    """The largest relative error of each answer, the seconds that both took to answer, and the process's peak of memory in GB."""
    part = PARTS[name]()
    with shapes_only():
        network = part.ours()
    randomly(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as files are read
    start = time.perf_counter()
    answers = part.ask(network)
    ours = time.perf_counter() - start

    with shapes_only():
        reference = part.reference()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    adopt(reference.eval(), network.state_dict())
    start = time.perf_counter()
    truths = part.ask_reference(reference)
    theirs = time.perf_counter() - start
    errors = {}
    for what, answer in answers.items():
        truth = truths[what.partition(",")[0]]
        errors[what] = ((answer - truth).abs().max() / truth.abs().max()).item()
    return {"errors": errors, "ours": ours, "theirs": theirs, "peak": peak(), "parameters": sum(p.numel() for p in network.parameters())}


def adopt(reference: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a reference that was built without values our tensors, none copied, every name and shape accounted for."""
    if not any(name.startswith("text_model.") for name in reference.state_dict()):  # transformers' name in memory lacks it
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    reference.load_state_dict(state, strict=True, assign=True)
    for module in reference.modules():  # the one thing that is not saved: places 0, 1, 2, …
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
    heads = "part", "parameters", "answer", "largest relative error", "ours, s", "theirs, s", "peak, GB"
    lines = [row(heads), row("---" for _ in heads)]
    print("\n".join(lines))
    worst = 0.0
    for name in options.parts:
        found = in_a_process("benchmarks.parity", "--one", name, GOMP_SPINCOUNT=SPINS)  # as the commands set it
        for what, error in found["errors"].items():
            worst = max(worst, error)
            lines.append(row((name, f"{found['parameters']:,}", what, f"{error:.1e}", found["ours"], found["theirs"], found["peak"])))
            print(lines[-1], flush=True)
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    about = " ".join((__doc__ or "").split("\n\n")[2].split())
    about += " Seconds are those of all answers of a part together, ours of the packed ones, too."
    command = f"`python -m benchmarks.parity --parts {' '.join(options.parts)}`; {where}."
    title, table = "# The full-sized networks against the reference", "\n".join(lines)
    options.out.write_text(f"{title}\n\n{about}\n\n{command}\n\n{table}\n")
    if not worst <= LARGEST:
        sys.exit(f"The largest relative error is {worst:.1e}; at most {LARGEST:.0e} is right.")


if __name__ == "__main__":
    main()
