"""The settings of PEFT that a LoRA's tensors do not hold: alpha, rank-stabilised scale, patterns per layer.

    scale = alpha / r,   with use_rslora alpha / √r          (Kalajdzievski 2023, arXiv:2312.03732)

They are in `adapter_config.json` of a PEFT folder, or in the header of a file that diffusers wrote.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from daguerre.errors import DaguerreError
from daguerre.weights.tensors.safetensors import read_json

HEADER_KEY = "lora_adapter_metadata"  # of diffusers: JSON with names such as "unet.lora_alpha"
SUPPORTED_TYPES = ("LORA", "LOHA", "LOKR", "IA3")


@dataclass(frozen=True)
class PeftConfig:
    """Settings of one network's adapter. The patterns give other values for layers whose path ends in a name."""

    alpha: float | None = None
    rank: int | None = None
    rslora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def alpha_of(self, module: str, rank: int) -> float | None:
        """The alpha of a layer so that alpha / rank is its scale; None if unknown, which means a scale of 1."""
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return None if alpha is None else alpha * (sqrt(rank) if self.rslora else 1)

    def rank_of(self, module: str) -> int | None:
        """The rank of a layer."""
        rank = _by_pattern(self.rank_pattern, module, self.rank)
        return None if rank is None else int(rank)


def peft_configs(metadata: Mapping[str, str], config_file: Path | None = None) -> dict[str, PeftConfig]:
    """The settings by network ("unet", "text_encoder", …), or under "" for a folder of one network; empty if there are none.

    Raises:
        DaguerreError: the settings cannot be read, or are of a kind that is not supported.
    """
    if config_file is not None and config_file.is_file():
        return {"": _config(read_json(config_file), config_file)}
    if HEADER_KEY not in metadata:
        return {}
    try:
        stored = json.loads(metadata[HEADER_KEY])
        groups: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in stored.items():
            network, _, key = name.partition(".")
            groups[network][key] = value
    except (ValueError, AttributeError, RecursionError) as error:
        raise DaguerreError(f"The header's {HEADER_KEY} is not readable ({error}); download the file again.") from error
    return {network: _config(values, HEADER_KEY) for network, values in groups.items()}


def _config(values: Mapping[str, Any], where: object) -> PeftConfig:
    kind = values.get("peft_type", "LORA")
    if kind not in SUPPORTED_TYPES:
        raise DaguerreError(f"'{where}' is an adapter of PEFT's kind {kind!r}; the supported ones are {', '.join(SUPPORTED_TYPES)}.")
    alpha = values.get("lora_alpha", values.get("alpha"))
    patterns = {key: values.get(key) or {} for key in ("alpha_pattern", "rank_pattern")}
    rank = values.get("r")
    numbers = [alpha, rank, *(number for pattern in patterns.values() if isinstance(pattern, dict) for number in pattern.values())]
    dictionaries = all(isinstance(pattern, dict) for pattern in patterns.values())
    if not dictionaries or not all(number is None or _is_number(number) for number in numbers):
        raise DaguerreError(f"'{where}' has a rank or alpha that is no number; download it again.")
    return PeftConfig(alpha, rank, bool(values.get("use_rslora")), **patterns)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _by_pattern(pattern: Mapping[str, float], module: str, default: float | None) -> float | None:
    """The value of the first name that the module's path ends in. PEFT allows regular expressions, but writes names."""
    return next((value for name, value in pattern.items() if f".{module}".endswith(f".{name.removeprefix('^')}")), default)
