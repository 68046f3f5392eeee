"""The losses against hand calculations and autograd; what must not change does not."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from daguerre.data import Batch
from daguerre.diffusion import Conditioning, Schedule, ScheduleConfig
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.training.ema import EMA
from daguerre.training.objectives.autoencoder import AutoencoderLoss, AutoencoderTask, adaptive_weight, gradient_distance, latent_change
from daguerre.training.objectives.clip import contrastive_loss
from daguerre.training.objectives.diffusion import DiffusionLoss, DiffusionTask, sample_timesteps

TINY = AutoencoderKLConfig(latent_channels=4, channels=(8, 16), blocks=1, mid_attention=False, norm_groups=4)


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    w = torch.tensor([2.0, -1.0], requires_grad=True)
    rec, g = (w * torch.tensor([3.0, 4.0])).sum(), (w * torch.tensor([0.0, 2.0])).sum()
    assert adaptive_weight(rec, g, w).item() == pytest.approx(5 / (2 + 1e-4))
    assert adaptive_weight(rec, g * 1e-9, w, largest=1e4).item() == 1e4
    assert not adaptive_weight(rec, g, w).requires_grad


def test_each_loss_of_the_adversarial_pair_moves_only_its_own_network():
    torch.manual_seed(0)
    weights = AutoencoderLoss(gradient=0.0, kl=0.0, adversarial=1.0, adversarial_start=0, adversarial_ramp=1)
    critic = PatchDiscriminator(PatchDiscriminatorConfig(channels=8, layers=1))
    stage = AutoencoderTask(AutoencoderKL(TINY), weights, torch.zeros(2, 3, 16, 16), discriminator=critic)
    batch = Batch(torch.rand(4, 3, 16, 16) * 2 - 1, [""] * 4)
    yielded = stage.losses(batch, seeded(), step=5)
    name, loss, logged = next(yielded)
    assert name == "autoencoder"
    assert logged["lambda"].item() > 0
    loss.backward()
    assert all(p.grad is None for p in critic.parameters())
    moved = {name: p.grad.clone() for name, p in stage.plain.named_parameters()}  # all of them have one
    name, d, _ = next(yielded)
    d.backward()
    assert name == "discriminator"
    assert all(p.grad is not None for p in critic.parameters())
    assert all(torch.equal(p.grad, moved[name]) for name, p in stage.plain.named_parameters())
    assert next(yielded, None) is None


def test_the_autoencoders_gradient_is_that_of_the_whole_sum():
    torch.manual_seed(0)
    weights = AutoencoderLoss(kl=0.0, adversarial=0.7, adversarial_start=0, adversarial_ramp=1)
    critic = PatchDiscriminator(PatchDiscriminatorConfig(channels=8, layers=1))
    stage = AutoencoderTask(AutoencoderKL(TINY), weights, torch.zeros(2, 3, 16, 16), discriminator=critic)
    batch = Batch(torch.rand(4, 3, 16, 16) * 2 - 1, [""] * 4)
    _, loss, logged = next(stage.losses(batch, seeded(), step=5))
    loss.backward()
    ours = {name: p.grad.clone() for name, p in stage.plain.named_parameters()}
    stage.plain.zero_grad()
    draw = seeded()
    torch.rand((), generator=draw)  # whether the latent is changed is drawn before its noise
    noise = torch.randn(4, 4, 8, 8, generator=draw)
    rebuilt, _ = stage.plain(batch.x, noise)
    whole = stage._reconstruction(batch.x, rebuilt) - 0.7 * logged["lambda"] * critic(rebuilt).mean()
    torch.testing.assert_close(loss, whole)
    whole.backward()
    assert stage.plain.last_layer.grad.abs().max() > 1e-3
    for name, p in stage.plain.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_critic_waits_for_its_start_and_rises():
    weights = AutoencoderLoss(adversarial=1.0, adversarial_start=10, adversarial_ramp=4)
    critic = PatchDiscriminator(PatchDiscriminatorConfig(channels=8, layers=1))
    stage = AutoencoderTask(AutoencoderKL(TINY), weights, torch.zeros(2, 3, 16, 16), discriminator=critic)
    batch = Batch(torch.zeros(2, 3, 16, 16), [""] * 2)
    assert [name for name, _, _ in stage.losses(batch, seeded(), step=9)] == ["autoencoder"]
    assert [name for name, _, _ in stage.losses(batch, seeded(), step=10)] == ["autoencoder", "discriminator"]
    assert [stage._adversarial_ramp(step) for step in (9, 10, 11, 13, 99)] == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_gradient_distance_by_hand():
    x, y = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 1.0], [3.0, 0.0]]]])
    assert gradient_distance(x, y).item() == pytest.approx(((1 + 3) / 2 + (3 + 1) / 2) / 2)


def test_latent_change_does_the_same_to_latents_and_pictures():
    """Turning commutes with pooling, so changing then pooling is pooling then changing."""
    x = torch.rand(1, 3, 64, 64, generator=seeded(1))
    for n in range(12):
        change = latent_change(seeded(n))
        ahead, behind = F.avg_pool2d(change(x), 8), change(F.avg_pool2d(x, 8))
        assert ahead.shape == behind.shape
        assert (ahead - behind).abs().mean() < 0.08  # resizing filters differ in width; turns are exact
    turned = {tuple(latent_change(seeded(n))(x).shape[-2:]) for n in range(12)}
    assert turned == {(64, 64), (48, 48), (32, 32)}


def test_contrastive_loss_is_cross_entropy_both_ways():
    logits = torch.randn(5, 5, generator=seeded())
    own = torch.arange(5)
    loss, right = contrastive_loss(logits, list("abcde"))
    assert loss.item() == pytest.approx(((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2).item(), abs=1e-6)
    assert right.item() == pytest.approx((logits.argmax(0) == own).float().mean().item())


def test_equal_captions_are_one_class():
    """Logits that are the same for equal captions lose nothing but the log of how many share the target."""
    logits = torch.full((4, 4), -50.0)
    logits[:2, :2] = logits[2, 2] = logits[3, 3] = 50.0
    loss, right = contrastive_loss(logits, ["a cat", "a cat", "a dog", "a pig"])
    assert loss.item() == pytest.approx(2 * math.log(2) / 4)
    assert right.item() == 1.0


class Perfect(nn.Module):
    """Answers v exactly for a data set of one point: x0 is known, so ε and v follow from x_t."""

    def __init__(self, x0: torch.Tensor, schedule: Schedule):
        super().__init__()
        self.x0, self.schedule, self.told = x0, schedule, []
        self.conv_norm_out = nn.GroupNorm(1, 1)  # which tells device and dtype

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        a = self.schedule.alphas_cumprod[t].float().view(-1, 1, 1, 1)
        eps = (x - a.sqrt() * self.x0) / (1 - a).sqrt()
        self.told.append(cond.label)
        return a.sqrt() * eps - (1 - a).sqrt() * self.x0


@pytest.mark.parametrize("loss", [DiffusionLoss(), DiffusionLoss(timestep_sampling="logit_normal", snr_gamma=5.0)])
def test_the_diffusion_loss_of_a_perfect_network_is_zero(loss):
    schedule = Schedule(ScheduleConfig(zero_terminal_snr=True))
    x0 = torch.randn(1, 4, 8, 8, generator=seeded())
    network = Perfect(x0, schedule)
    model = LatentDiffusion(network, AutoencoderKL(TINY), lambda prompts: Conditioning(), schedule, "v", "perfect", 16)  # pyright: ignore
    stage = DiffusionTask(model, loss, lambda captions: Conditioning(label=torch.tensor([len(c) for c in captions])), ["x"])
    batch = Batch(x0.expand(64, -1, -1, -1), ["abc"] * 64, latent=True)
    (name, value, values), *rest = stage.losses(batch, seeded(3), step=0)
    assert (name, rest) == ("unet", [])
    assert ("mse" in values) == (loss.min_snr is not None)  # without weights it is the loss itself
    assert value.item() < 1e-6
    network.x0 = x0 + 1.0
    assert next(stage.losses(batch, seeded(3), step=0))[1].item() > 1e-2


def test_a_tenth_of_the_captions_is_dropped():
    schedule = Schedule(ScheduleConfig())
    network = Perfect(torch.zeros(1, 4, 8, 8), schedule)
    model = LatentDiffusion(network, AutoencoderKL(TINY), lambda prompts: Conditioning(), schedule, "v", "perfect", 16)  # pyright: ignore
    stage = DiffusionTask(model, DiffusionLoss(), lambda captions: Conditioning(label=torch.tensor([len(c) for c in captions])), ["x"])
    list(stage.losses(Batch(torch.zeros(4000, 4, 8, 8), ["abc"] * 4000, latent=True), seeded(), step=0))
    assert (network.told[0] == 0).float().mean().item() == pytest.approx(0.1, abs=0.015)


def test_times_cover_the_schedule():
    uniform, normal, shifted = (
        sample_timesteps(20_000, 1000, loss, seeded())
        for loss in (DiffusionLoss(), DiffusionLoss(timestep_sampling="logit_normal"), DiffusionLoss(shift=4.0))
    )
    assert (uniform.min(), uniform.max()) == (0, 999)
    assert uniform.float().mean().item() == pytest.approx(499.5, abs=8)
    assert (shifted >= 800).float().mean().item() == pytest.approx(0.5, abs=0.01)  # 4·½ / (1 + 3·½)
    # sigmoid of a standard normal lies in the middle half with P(|n| < ln 3)
    assert ((normal > 250) & (normal < 750)).float().mean().item() == pytest.approx(math.erf(math.log(3) / math.sqrt(2)), abs=0.01)


def test_the_average_warms_up_as_said_and_comes_off():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = EMA({"n": network}, decay=0.9)
    expected = 0.0
    for n in range(200):
        nn.init.constant_(network.weight, float(n))
        ema.update()
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * n
    assert ema.averaged["n.weight"].item() == pytest.approx(expected, rel=1e-5)
    with ema.applied():
        assert network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert network.weight.item() == 199.0


def test_contrary_captions_are_told_from_by_pictures_alone():
    logits = torch.zeros(3, 2)  # two captions, and one that is not true of the second picture, but as good by these logits
    loss, _ = contrastive_loss(logits, ["a cat", "a dog"])
    assert loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2)
    logits[2, 1] = 9.0
    assert contrastive_loss(logits, ["a cat", "a dog"])[1].item() == 0.5
