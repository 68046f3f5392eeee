"""`train lcm`: one step equals the arithmetic of diffusers, the file brings its settings, and an interrupted run resumes exactly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import daguerre
from daguerre.adapters import load_lora, with_adapters
from daguerre.adapters.attach import adapted_networks
from daguerre.adapters.lora.write import save_lora
from daguerre.adapters.presets import presets_of_file
from daguerre.data import BatchLoader, ShapesDataset
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import LoopConfig
from daguerre.training.ema import EMA
from daguerre.training.objectives.adapters.lcm import ConsistencyTask, boundary_scalings
from daguerre.training.objectives.adapters.lora import LoraNetwork
from daguerre.training.options.adapters.lcm import ConsistencyLoss, LCMRecipe
from daguerre.training.options.adapters.lora import LoraLayerOptions, LoraOptions
from daguerre.training.recipes.adapters.lcm import run
from daguerre.weights.tensors.safetensors import read_safetensors
from tests.families.conftest import peer
from tests.training.recipes.test_lora import folder, inputs_of, prediction, saved, trained_network

__all__ = ["folder", "peer", "saved"]
LOOP = LoopConfig(max_train_steps=4, batch_size=2, learning_rate=1e-2, lr_warmup_steps=1, ema_decay=0.5, sample_every=0, checkpoint_every=2,
                  lr_scheduler="constant")  # fmt: skip
GUIDANCE = 3.0


def loss_of(task: ConsistencyTask, seed: int = 0) -> Tensor:
    batch = BatchLoader(ShapesDataset(task.model.sample_size), 4, 0).batch(0)
    ((name, loss, _),) = task.losses(batch, task.networks, BatchRandom(torch.Generator().manual_seed(seed), len(batch)), 0)
    assert name == "unet"
    return loss


def by_diffusers(pipeline: Any, model: LatentDiffusion, student: LatentDiffusion, average: LatentDiffusion, loss_type: str) -> Tensor:
    """The loss of examples/consistency_distillation, with the UNet and the schedulers of diffusers for the teacher."""
    library: Any = diffusers
    generator, batch = torch.Generator().manual_seed(0), BatchLoader(ShapesDataset(model.sample_size), 4, 0).batch(0)
    start = (torch.randint(50, (4,), generator=generator) + 1) * 20 - 1
    end = (start - 20).clamp(min=0)
    z0 = pipeline.vae.encode(batch.x).latent_dist.mean * pipeline.vae.config.scaling_factor
    z = library.DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(z0, torch.randn(z0.shape, generator=generator), start)
    solver = library.DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=False, clip_sample=False
    )
    solver.set_timesteps(50)
    lcm = library.LCMScheduler.from_config(pipeline.scheduler.config)
    prompt, empty = (pipeline.encode_prompt(texts, "cpu", 1, do_classifier_free_guidance=False)[0] for texts in (batch.captions, [""] * 4))
    with torch.no_grad():
        conditional, unconditional = (pipeline.unet(z, start, encoder_hidden_states=text).sample for text in (prompt, empty))
        eps = conditional + (GUIDANCE - 1) * (conditional - unconditional)  # the paper's ω is the guidance scale less 1
        z_end = torch.cat([solver.step(eps[i : i + 1], int(start[i]), z[i : i + 1]).prev_sample for i in range(4)])

    def consistency(network: LatentDiffusion, x: Tensor, t: Tensor) -> Tensor:
        output = network.unet(x, t, network.conditioner.encode_captions(batch.captions))  # pyright: ignore
        alpha = lcm.alphas_cumprod[t][:, None, None, None]
        c_skip, c_out = (
            torch.tensor([float(lcm.get_scalings_for_boundary_condition_discrete(int(each))[part]) for each in t])[:, None, None, None]
            for part in (0, 1)
        )
        return c_skip * x + c_out * (x - (1 - alpha).sqrt() * output) / alpha.sqrt()

    with torch.no_grad():
        difference = consistency(student, z, start) - consistency(average, z_end, end)
    return difference.square().mean() if loss_type == "l2" else ((difference**2 + 1e-6).sqrt() - 1e-3).mean()


@pytest.mark.parametrize("loss_type", ["huber", "l2"])
def test_one_step_equals_diffusers(peer: Any, tmp_path: Path, loss_type: Any):
    pipeline, _, model = peer("sd1")
    model = replace(model, sample_size=32)
    network = trained_network(model, LoraOptions(2, modules="attn2"))
    task = ConsistencyTask(network, ConsistencyLoss(GUIDANCE, loss_type), ())

    def as_model(name: str) -> LatentDiffusion:
        file = save_lora(network.value(name, {}), tmp_path / f"{name}.safetensors", adapted_networks(model))
        return with_adapters(model, [load_lora(file)])

    average = as_model("average")
    ema = EMA({"unet": network}, 0.5)
    for parameter in network.parameters():
        parameter.data *= 1.5
    student = as_model("student")
    with network.attached():
        alone = loss_of(task)
        task.use_average(ema)
        loss = loss_of(task)
    expected = [by_diffusers(pipeline, model, student, target, loss_type).item() for target in (student, average)]
    assert [alone.item(), loss.item()] == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-2)


def test_only_the_student_has_a_gradient(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    network = trained_network(model, LoraOptions(2, modules="attn2"))
    before = prediction(model)
    with network.attached(), torch.no_grad():
        changed = network(*inputs_of(model), ["a red apple, ink", "a blue apple, ink"])
        with network.suspended():
            assert torch.equal(network(*inputs_of(model), ["a red apple, ink", "a blue apple, ink"]), before)
    assert not torch.equal(changed, before)
    with network.attached():
        loss_of(ConsistencyTask(network, ConsistencyLoss(), ())).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in model.unet.parameters())


def test_at_the_end_of_a_trajectory_the_image_is_kept(make_tiny_model: Callable[..., LatentDiffusion]):
    """The boundary condition f(z, 0) = z, which forbids that the student learns the same image for every z."""
    model = make_tiny_model()
    network = trained_network(model, LoraOptions(2, modules="attn2"))
    task, (z, _) = ConsistencyTask(network, ConsistencyLoss(), ()), inputs_of(model)
    with network.attached(), torch.no_grad():
        assert torch.equal(task.consistency(network, z, torch.zeros(2, dtype=torch.long), ["a", "b"]), z)
    skip, out = boundary_scalings(torch.tensor([0, 19, 999]))
    assert (skip[0].item(), out[0].item()) == (1, 0)
    assert (skip[1:] < 1e-5).all()
    assert (out[1:] > 1 - 1e-5).all()


@pytest.mark.parametrize("prediction_type", ["v", "x0", "epsilon"])
def test_a_consistent_teacher_gives_no_loss(make_tiny_model: Callable[..., LatentDiffusion], prediction_type: Any):
    """Of a dataset with the single image 0 the exact prediction is known, and every step of the trajectory ends at 0."""
    model = make_tiny_model(prediction_type, zero_terminal_snr=prediction_type != "epsilon")
    task = ConsistencyTask(LoraNetwork(model, {}), ConsistencyLoss(1.0, "l2"), ())

    def exact(x: Tensor, t: Tensor, captions: Any) -> Tensor:
        a, b = (value.sqrt()[:, None, None, None] for value in (task.alpha_bar(t), 1 - task.alpha_bar(t)))
        return {"v": a * x / b, "x0": 0 * x, "epsilon": x / b}[prediction_type]

    task.network.forward = exact
    t = torch.tensor([999, 499, 39, 19])
    z = torch.randn(4, 6, 4, 4) * (1 - task.alpha_bar(t)).sqrt()[:, None, None, None]
    end = (t - 20).clamp(min=0)
    reached = task.teacher_step(z, t, end, ["a"] * 4)
    ratio = ((1 - task.alpha_bar(end)) / (1 - task.alpha_bar(t))).sqrt()[:, None, None, None]
    assert torch.allclose(reached, ratio * z, atol=1e-5)
    assert task.consistency(task.network, reached[:3], end[:3], ["a"] * 3).abs().max() < 1e-4


def test_the_finished_file_brings_its_settings(saved: str, folder: Path, tmp_path: Path):
    """A file whose name does not say what it is; `txt2img --lora` needs no other option."""
    path = run(LCMRecipe(str(folder), tmp_path / "quick", saved, lora=LoraLayerOptions(2), loop=replace(LOOP, sample_every=4)))
    assert path == tmp_path / "quick" / "quick.safetensors"
    (preset,) = presets_of_file(path)
    assert preset.name == "lcm"
    assert presets_of_file(tmp_path / "quick" / "quick-peft.safetensors") == [preset]
    assert list((tmp_path / "quick" / "samples").glob("*.png"))
    model = daguerre.load(saved)
    assert isinstance(model, LatentDiffusion)
    (image,) = daguerre.generate(with_adapters(model, [load_lora(path)]), "a red apple", **preset.fields)
    assert image.image.size == (32, 32)


def test_an_interrupted_run_resumes_exactly(saved: str, folder: Path, tmp_path: Path):
    def trained(out: str, steps: int) -> dict[str, Tensor]:
        recipe = LCMRecipe(str(folder), tmp_path / out, saved, lora=LoraLayerOptions(2), loop=replace(LOOP, max_train_steps=steps))
        return read_safetensors(run(recipe))

    whole, half = trained("whole", 4), trained("parts", 2)
    parts = trained("parts", 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)
    other = LCMRecipe(str(folder), tmp_path / "parts", saved, lora=LoraLayerOptions(2), loop=LOOP, loss=ConsistencyLoss(2.0))
    with pytest.raises(DaguerreError, match=r"belongs to a run with recipe\.guidance 7\.5, not 2"):
        run(other)


@pytest.mark.parametrize(
    ("options", "message"), [({"guidance_scale": 0.5}, "guidance_scale is 0.5; it must be 1 or more"), ({"huber_c": 0.0}, "huber_c is 0")]
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(DaguerreError, match=message):
        ConsistencyLoss(**options)
