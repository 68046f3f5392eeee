"""PriorTask: its loss in bits, corrupted inputs, conditions, and invalid arguments."""

import math
from pathlib import Path

import pytest
import torch

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import bits_per_code
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.batch_random import BatchRandom
from daguerre.training.loop import LoopConfig, train
from daguerre.training.objectives.prior import CodeBatch, CodeBatches, PriorTask, corrupt

FIRST_STAGE = VQModelConfig(
    QuantizerConfig(codes=4, width=2), latent_channels=2, channels=(4, 4), blocks=1, attention_levels=(), mid_attention=False, norm_groups=2
)


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def data(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Grids that count up from a random first code, (N, 3, 3), and that code as their class, (N, 1)."""
    first = torch.randint(4, (count, 1, 1), generator=seeded())
    return (first + torch.arange(9).view(1, 3, 3)) % 4, first[:, 0]


def build_prior(kind: str, classes: int = 4) -> TransformerPrior | PixelCNN | PixelSNAIL:
    torch.manual_seed(0)
    if kind == "transformer":
        return TransformerPrior(TransformerPriorConfig(4, classes, 10, (3, 3), width=16, layers=1, heads=2))
    if kind == "pixelcnn":
        return PixelCNN(PixelCNNConfig(4, width=16, layers=2, first_kernel=3, classes=classes))
    return PixelSNAIL(PixelSNAILConfig(4, width=16, blocks=1, layers=1, heads=2, key_width=8, classes=classes))


def build_task(kind: str, **options) -> PriorTask:
    codes, label = data(4)
    return PriorTask(build_prior(kind), VQModel(FIRST_STAGE), CodeBatch(codes, label), **options)


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn", "pixelsnail"])
def test_training_learns_the_sequence_and_the_class(kind: str, tmp_path: Path):
    """Without the class the first code costs 2 bits; with it, and the rule, nothing does."""
    task, (codes, label) = build_task(kind), data()
    config = LoopConfig(
        max_train_steps=80, batch_size=16, learning_rate=1e-2, lr_warmup_steps=5, ema_decay=0, sample_every=0, checkpoint_every=80
    )
    train(task, CodeBatches(codes, label, 16, seed=0), config, tmp_path)
    with torch.no_grad():
        assert bits_per_code(task.prior(codes, label), codes).mean().item() < 0.1
        other = bits_per_code(task.prior(codes, (label + 1) % 4), codes)
        assert other.mean().item() > 0.2
    assert task.sample().width > 0


def test_the_loss_is_the_exact_code_length():
    task, (codes, label) = build_task("transformer"), data(8)
    ((name, loss, logged),) = task.losses(CodeBatch(codes, label), task.networks, BatchRandom(seeded(), len(codes)), step=0)
    assert name == "prior"
    expected = bits_per_code(task.prior(codes, label), codes).mean().item()
    assert logged["bits/code"].item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(expected * math.log(2), rel=1e-5)


def test_corrupted_codes_are_inputs_but_not_targets():
    codes = torch.zeros(200, 10, 10, dtype=torch.long)
    inputs = corrupt(codes, 0.75, 4, BatchRandom(seeded(), len(codes)))
    # A replaced code is the same one again with probability 1/4.
    assert (inputs != codes).float().mean().item() == pytest.approx(0.25 * 0.75, abs=0.01)
    assert corrupt(codes, 1.0, 4, BatchRandom(seeded(), len(codes))) is codes
    inputs_seen: list[torch.Tensor] = []
    task, (codes, label) = build_task("transformer", pkeep=0.5), data(32)
    task.prior.register_forward_pre_hook(lambda module, arguments: inputs_seen.append(arguments[0]))
    ((_, loss, _),) = task.losses(CodeBatch(codes, label), task.networks, BatchRandom(seeded(), len(codes)), step=0)
    assert not torch.equal(inputs_seen[0], codes)
    expected = bits_per_code(task.prior(inputs_seen[0], label), codes).mean().item() * math.log(2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_batches_depend_only_on_seed_and_step():
    codes, label = data(10)
    codes[:, 0, 0] = torch.arange(10)
    batches = CodeBatches(codes.to(torch.int16), label, 4, seed=1)
    stream = batches.stream(0)
    batch_list = [next(stream) for _ in range(5)]
    assert sorted(int(c[0, 0]) for batch in batch_list for c in batch.codes) == sorted([*range(10)] * 2)
    later = next(CodeBatches(codes, label, 4, seed=1).stream(3))
    assert torch.equal(later.codes, batch_list[3].codes)
    assert later.codes.dtype == torch.long
    part = later[1:3]
    assert len(part) == 2
    assert part.condition is not None
    assert torch.equal(part.condition, later.condition[1:3])  # pyright: ignore[reportOptionalSubscript]


def test_invalid_arguments_are_refused():
    codes, label = data(4)
    with pytest.raises(DaguerreError, match="3 conditions for 4"):
        CodeBatches(codes, label[:3], 2, seed=0)
    with pytest.raises(DaguerreError, match=r"pkeep is 0\.0"):
        build_task("transformer", pkeep=0.0)
    with pytest.raises(DaguerreError, match="has 5 codes, but the first stage has 4"):
        PriorTask(PixelCNN(PixelCNNConfig(5, width=4, layers=1)), VQModel(FIRST_STAGE), CodeBatch(codes))
