"""The denoising U-Net ε_θ(x_t, t, c): residual blocks and attention, a downward and an upward path with skip connections.

DDPM: Ho et al. 2020, arXiv:2006.11239, appendix B.  Latent diffusion: Rombach et al. 2022, arXiv:2112.10752, appendix E.2.
SDXL: Podell et al. 2023, arXiv:2307.01952, §2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor, nn

from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.nn.attention import AttentionBlock, SpatialTransformer, repeat_to_batch
from daguerre.nn.blocks import DownBlock, MidBlock, UpBlock
from daguerre.nn.embeddings import EmbeddingMLP, sinusoidal
from daguerre.nn.norm import GroupNormSiLU
from daguerre.nn.resample import Downsample, Upsample
from daguerre.nn.resblock import ResBlock


@dataclass(frozen=True)
class UNetConfig:
    """Defaults: Stable Diffusion 1.

    Tuples have one entry per level, from full resolution down; the middle block has the width and heads of the last level.
    """

    in_channels: int = 4  # of x plus Conditioning.concat
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2  # residual blocks per level on the downward path; one more on the upward path
    depth: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks after each residual block; 0: no attention at this level
    mid_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context_width: int | None = 768  # of Conditioning.context; None: plain self-attention blocks, of depth 1
    vector_width: int | None = None  # of Conditioning.vector
    classes: int | None = None  # Conditioning.label is below this number
    linear_projection: bool = False
    cross_only_levels: tuple[int, ...] = ()  # levels whose first attention is cross-attention, too
    scale_shift: bool = False
    resample: Literal["conv", "resblock"] = "conv"
    downsample_padding: Literal[0, 1] = 1
    dropout: float = 0.0
    norm_groups: int = 32
    norm_eps: float = 1e-5
    time_cos_first: bool = True
    time_frequency_shift: int = 0

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.depth) == len(self.heads):
            raise DaguerreError(
                "A UNet needs one entry per level in channels, depth and heads; "
                f"got {len(self.channels)}, {len(self.depth)} and {len(self.heads)} entries."
            )
        if self.context_width is None and max(*self.depth, self.mid_depth) > 1:
            raise DaguerreError(
                f"Without context_width the attention depth must be 0 or 1; got depth {self.depth} and mid_depth {self.mid_depth}."
            )


SD1 = UNetConfig()
SD1_INPAINTING = replace(SD1, in_channels=9)  # latent 4, masked image 4, mask 1
PIX2PIX = replace(SD1, in_channels=8)
SD2 = replace(SD1, heads=(5, 10, 20, 20), context_width=1024, linear_projection=True)
SD2_INPAINTING = replace(SD2, in_channels=9)
SD2_DEPTH = replace(SD2, in_channels=5)
SD2_UPSCALER = replace(
    SD2,
    in_channels=7,  # latent 4, low-resolution image 3
    channels=(256, 512, 512, 1024),
    depth=(0, 1, 1, 1),
    heads=(8, 8, 8, 8),
    cross_only_levels=(0, 1, 2),
    classes=1000,  # noise level of the low-resolution image
)
SDXL = replace(
    SD2, channels=(320, 640, 1280), depth=(0, 2, 10), mid_depth=10, heads=(5, 10, 20), context_width=2048, vector_width=1280 + 6 * 256
)
SDXL_REFINER = replace(
    SDXL,
    channels=(384, 768, 1536, 1536),
    depth=(0, 4, 4, 0),
    mid_depth=4,
    heads=(6, 12, 24, 24),
    context_width=1280,
    vector_width=1280 + 5 * 256,
)
LDM_TEXT2IMG = replace(SD1, context_width=1280)
LDM_FACES = UNetConfig(
    in_channels=3, out_channels=3, channels=(224, 448, 672, 896), depth=(0, 1, 1, 1), heads=(7, 14, 21, 28), context_width=None
)
LDM_CHURCHES = UNetConfig(
    channels=(192, 384, 384, 768, 768),
    depth=(1, 1, 1, 1, 0),
    heads=(8, 8, 8, 8, 8),
    context_width=None,
    scale_shift=True,
    resample="resblock",
)
LDM_IMAGENET = UNetConfig(  # class-conditional through a context of one token
    in_channels=3, out_channels=3, channels=(192, 384, 576, 960), depth=(0, 1, 1, 1), heads=(1, 1, 1, 1), context_width=512
)
LDM_INPAINTING = replace(LDM_FACES, in_channels=7, channels=(256, 512, 768, 1024), heads=(8, 8, 8, 8), resample="resblock")
DDPM_CIFAR10 = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=(128, 256, 256, 256),
    depth=(0, 1, 0, 0),
    heads=(1, 1, 1, 1),
    context_width=None,
    downsample_padding=0,
    dropout=0.1,
    norm_eps=1e-6,
    time_cos_first=False,
    time_frequency_shift=1,
)
DDPM_256 = replace(DDPM_CIFAR10, channels=(128, 128, 256, 256, 512, 512), depth=(0, 0, 0, 0, 1, 0), heads=(1, 1, 1, 1, 1, 1), dropout=0.0)


class UNetEncoder(nn.Module):
    """The downward path and the middle of a UNet, with its embeddings of time and vector; a ControlNet has the same.

    skip_channels: the width of each skip connection, in the order of the downward path.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, E = config.channels, 4 * config.channels[0]
        self.time_embedding = EmbeddingMLP(channels[0], E)
        self.class_embedding = nn.Embedding(config.classes, E) if config.classes else None
        self.add_embedding = EmbeddingMLP(config.vector_width, E) if config.vector_width else None
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)

        self.down_blocks = nn.ModuleList()
        width, skips = channels[0], [channels[0]]
        for level, out in enumerate(channels):
            resnets = [self._resblock(width if i == 0 else out, out) for i in range(config.blocks)]
            last = level == len(channels) - 1
            self.down_blocks.append(DownBlock(resnets, self._attentions(level, config.blocks), None if last else self._downsampler(out)))
            skips += [out] * (config.blocks + (not last))
            width = out

        attentions = [self._attention(len(channels) - 1, config.mid_depth)] if config.mid_depth else []
        self.mid_block = MidBlock([self._resblock(width, width) for _ in range(2)], attentions)
        self.skip_channels = tuple(skips)

    def _resblock(self, in_channels: int, out_channels: int, resample: Literal["down", "up"] | None = None) -> ResBlock:
        config = self.config
        return ResBlock(
            in_channels,
            out_channels,
            4 * config.channels[0],
            groups=config.norm_groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            scale_shift=config.scale_shift,
            resample=resample,
        )

    def _attention(self, level: int, depth: int) -> AttentionBlock | SpatialTransformer:
        config, width, heads = self.config, self.config.channels[level], self.config.heads[level]
        if config.context_width is None:
            return AttentionBlock(width, heads, groups=config.norm_groups, eps=config.norm_eps)
        return SpatialTransformer(
            width,
            heads,
            config.context_width,
            depth,
            linear=config.linear_projection,
            groups=config.norm_groups,
            dropout=config.dropout,
            cross_only=level in config.cross_only_levels,
        )

    def _attentions(self, level: int, count: int) -> list[AttentionBlock | SpatialTransformer]:
        depth = self.config.depth[level]
        return [self._attention(level, depth) for _ in range(count)] if depth else []

    def _downsampler(self, channels: int) -> Downsample | ResBlock:
        if self.config.resample == "resblock":
            return self._resblock(channels, channels, "down")
        return Downsample(channels, self.config.downsample_padding)

    def _embed(self, t: Tensor, cond: Conditioning, dtype: torch.dtype) -> Tensor:
        config = self.config
        waves = sinusoidal(t, config.channels[0], cos_first=config.time_cos_first, frequency_shift=config.time_frequency_shift)
        emb = self.time_embedding(waves.to(dtype))  # (B, E)
        if self.class_embedding is not None and cond.label is not None:  # `_check` asks for the label
            emb = emb + self.class_embedding(cond.label.to(emb.device))
        if self.add_embedding is not None:
            emb = emb + self.add_embedding(cond.vector)
        return emb

    def _check(self, x: Tensor, cond: Conditioning) -> None:
        config = self.config
        given = x.shape[1] + (0 if cond.concat is None else cond.concat.shape[1])
        if given != config.in_channels:
            raise DaguerreError(f"This UNet takes {config.in_channels} channels, but x and Conditioning.concat have {given} in total.")
        for name, part, width in (("context", cond.context, config.context_width), ("vector", cond.vector, config.vector_width)):
            if width is not None and (part is None or part.shape[-1] != width):
                got = "none" if part is None else f"one of width {part.shape[-1]}"
                raise DaguerreError(f"This UNet needs a Conditioning.{name} of width {width}; got {got}.")
        if config.classes is not None and cond.label is None:
            raise DaguerreError(f"This UNet needs a Conditioning.label below {config.classes}; got none.")


class UNet(UNetEncoder):
    """Predicts ε, v or x0 from noisy x, time and conditioning.

    A new network returns zeros, as in the papers: its last convolution and the last layers of its residual branches are zero-initialised.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        channels, width, skips = config.channels, config.channels[-1], list(self.skip_channels)
        self.up_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(channels))):
            resnets = [self._resblock((width if i == 0 else out) + skips.pop(), out) for i in range(config.blocks + 1)]
            upsampler = self._upsampler(out) if level else None
            self.up_blocks.append(UpBlock(resnets, self._attentions(level, config.blocks + 1), upsampler))
            width = out

        self.conv_norm_out = GroupNormSiLU(config.norm_groups, width, config.norm_eps)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)
        self._zero_init()

    def _upsampler(self, channels: int) -> Upsample | ResBlock:
        return self._resblock(channels, channels, "up") if self.config.resample == "resblock" else Upsample(channels)

    def _zero_init(self) -> None:
        """Zero the output layer of every residual branch (Ho et al. 2020, code; Dhariwal and Nichol 2021)."""
        layers: list[nn.Module] = [self.conv_out]
        for module in self.modules():
            if isinstance(module, ResBlock):
                layers.append(module.conv2)
            elif isinstance(module, SpatialTransformer):
                layers.append(module.proj_out)
            elif isinstance(module, AttentionBlock):
                layers.append(module.to_out)
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Conditioning | None = None,
        *,
        control: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] = (),
    ) -> Tensor:
        """Predict from noisy x.

        Args:
            x: (B, C, H, W) of about unit variance; C plus the channels of `cond.concat` is `config.in_channels`.
            t: timesteps (B,) or () in [0, T), integers or fractions.
            cond: the parts that the config requires.
            control: residuals of a ControlNet, added on the upward path: one (B, C_i, H_i, W_i) for each skip connection, in the order of
                the downward path (`conv_in` first), then one for the middle block. For Stable Diffusion 1: 12 + 1.
            features: of a T2I-Adapter, (1 or B, C_i, …), one for each level of the downward path (see `DownBlock`), and for SDXL one more
                for the middle block.

        Returns:
            (B, C_out, H, W).

        Raises:
            DaguerreError: a part of the conditioning is missing or has the wrong width.
        """
        cond = Conditioning() if cond is None else cond
        self._check(x, cond)
        batch = len(x)
        emb = self._embed(t.expand(batch), cond, x.dtype)  # (B, E)
        x = x if cond.concat is None else torch.cat([x, cond.concat], dim=1)
        h = self.conv_in(x[: batch // self._shared_branches(cond)])  # (B, C_0, H, W), or (B/n, …) up to the first cross-attention
        skips = [h]
        for block, feature in zip_longest(self.down_blocks, features[: len(self.down_blocks)]):
            h = block(h, emb, cond.context, skips, feature)  # (B, C_i, H/2^i, W/2^i)
        h = self.mid_block(h, emb, cond.context)
        for feature in features[len(self.down_blocks) :]:
            h = h + feature
        if control is not None:
            skips = [repeat_to_batch(skip, batch) + residual for skip, residual in zip(skips, control[:-1], strict=True)]
            h = repeat_to_batch(h, batch) + control[-1]
        for block in self.up_blocks:
            h = block(h, emb, cond.context, skips)  # (B, C_i, H/2^i, W/2^i)
        return repeat_to_batch(self.conv_out(self.conv_norm_out(h)), batch)  # (B, C_out, H, W)

    def _shared_branches(self, cond: Conditioning) -> int:
        """How many conditions share their first layers: all of them if they differ only in the context, else 1."""
        return cond.num_conditions if cond.vector is None and cond.concat is None and cond.label is None else 1
