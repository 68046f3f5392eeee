"""Speed of priors over codes, for `benchmarks.training_speed`. All times are CPU time.

Sampling compared with transformers' GPT-2 of the same size, the gain and memory of the key-value cache, and training compared with a
minimal loop.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.models.autoregressive import Sampling, probabilities, sample_codes, uniform_noise
from daguerre.models.transformer_prior import KVCache, TransformerPrior, TransformerPriorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.loop import LoopConfig, train
from daguerre.training.objectives.prior import CodeBatch, CodeBatches, PriorTask

Row = tuple[str, float, float | None, str]  # what, daguerre_speed, the peer's, the aim
CONFIG = TransformerPriorConfig(codes=512, length=256, grid=(16, 16), width=192, layers=4, heads=6)
B, TOKENS, TRAINED_STEPS, TRAINED_BATCH = 2, 256, 6, 4
SIZE = f"{CONFIG.layers} layers of {CONFIG.width}, {TOKENS} codes"


def priors(runs: int) -> list[Row]:
    """Tokens per second with and without the cache, training grids per second, and the memory of the cache."""
    torch.manual_seed(0)
    prior, peer = TransformerPrior(CONFIG).eval(), gpt2()
    codes = torch.randint(CONFIG.codes, (TRAINED_BATCH * TRAINED_STEPS, 16, 16))
    sampling = interleaved(runs, lambda: seconds(lambda: sample(prior)), lambda: seconds(lambda: generate(peer)))
    uncached = seconds(lambda: from_the_start(prior))  # slow, so measured once
    training = interleaved(runs, lambda: 1 / daguerre_speed(codes), lambda: 1 / plain_speed(codes))
    cache = KVCache()
    with torch.no_grad():
        prior.read(torch.zeros(B, TOKENS, dtype=torch.long), cache)
    memory = sum(t.element_size() * t.numel() for pair in cache._states for t in pair) / 2**20
    return [
        (f"sampling, {SIZE}, {B} at once, tokens/s, against GPT-2", B * TOKENS / sampling[0], B * TOKENS / sampling[1], "≥ 1 ×"),
        (f"sampling with the cache, against without, {SIZE}, tokens/s", B * TOKENS / sampling[0], B * TOKENS / uncached, "≥ 5 ×"),
        (f"training a prior, {SIZE}, batches of {TRAINED_BATCH}, grids/s", 1 / training[0], 1 / training[1], "≥ 1 ×"),
        (f"memory of the cache, {SIZE}, {B} at once, MiB", memory, None, ""),
    ]


def interleaved(runs: int, one: Callable[[], float], two: Callable[[], float]) -> tuple[float, float]:
    """The medians of two alternating measurements after a warm-up."""
    one(), two()
    pairs = [(one(), two()) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def sample(prior: TransformerPrior) -> Tensor:
    *_, codes = prior.sample((16, 16), uniform_noise([torch.Generator().manual_seed(i) for i in range(B)], (16, 16)))
    return codes


@torch.no_grad()
def from_the_start(prior: TransformerPrior) -> Tensor:
    """The same codes without a cache: a full forward pass per code."""
    u = uniform_noise([torch.Generator().manual_seed(i) for i in range(B)], (16, 16))
    ids = torch.zeros(B, 1, dtype=torch.long)
    for n in range(TOKENS):
        ids = torch.cat([ids, sample_codes(probabilities(prior.read(ids)[:, -1], Sampling()), u[:, n])[:, None]], dim=1)
    return ids


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": CONFIG.width, "n_layer": CONFIG.layers, "n_head": CONFIG.heads}
    return GPT2LMHeadModel(GPT2Config(vocab_size=CONFIG.codes, n_positions=CONFIG.length, **shape)).eval()


@torch.no_grad()
def generate(peer: nn.Module) -> Tensor:
    """The same number of tokens from the peer with its cache, sampled with torch.multinomial."""
    ids = torch.zeros(B, 1, dtype=torch.long)
    cache = None
    for _ in range(TOKENS):
        answer = peer(ids, past_key_values=cache, use_cache=True)
        cache, ids = answer.past_key_values, torch.multinomial(answer.logits[:, -1].softmax(-1), 1)
    return ids


LOOP = LoopConfig(TRAINED_STEPS, TRAINED_BATCH, betas=(0.9, 0.95), ema_decay=0, log_every=2, sample_every=0, checkpoint_every=TRAINED_STEPS)


class Timed(CodeBatches):
    """Batches that record the times of their use."""

    def __init__(self, codes: Tensor):
        super().__init__(codes, None, TRAINED_BATCH, 0)
        self.asked: list[float] = []

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[CodeBatch]:
        for batch in super().stream(start):
            self.asked.append(time.process_time())
            yield batch

    def speed(self) -> float:
        """Grids per second, from the second batch to the last."""
        return (len(self.asked) - 2) * TRAINED_BATCH / (self.asked[-1] - self.asked[1])


def daguerre_speed(codes: Tensor) -> float:
    torch.manual_seed(0)
    first_stage = VQModel(VQModelConfig(QuantizerConfig(CONFIG.codes, 4), 3, 3, 4, (4, 4), 1, (), False, 2))
    batches = Timed(codes)
    with tempfile.TemporaryDirectory() as out:
        train(PriorTask(TransformerPrior(CONFIG), first_stage, CodeBatch(codes[:1])), batches, replace(LOOP), Path(out))
    return batches.speed()


def plain_speed(codes: Tensor) -> float:
    """Grids per second of a minimal loop."""
    torch.manual_seed(0)
    prior = TransformerPrior(CONFIG).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=LOOP.learning_rate, betas=LOOP.betas, fused=True)
    batches = Timed(codes)
    for batch, _ in zip(batches.stream(0), range(TRAINED_STEPS), strict=False):
        loss = F.cross_entropy(prior(batch.codes).flatten(0, 2), batch.codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    return batches.speed()
