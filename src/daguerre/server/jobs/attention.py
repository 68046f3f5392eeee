"""Attention maps of the gallery: where each word of an image's prompt acted, computed by generating the image again."""

import base64
import json
from collections.abc import Callable

import torch

from daguerre.atomic_io import atomic_write
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.attention_maps import WordMap, record_attention
from daguerre.pipelines.generation import Step, stream
from daguerre.pipelines.request import Request
from daguerre.server.storage.store import Store


def record_words(store: Store, image_id: str, model: LatentDiffusion, request: Request, on_step: Callable[[Step], None]) -> None:
    """Generate an image again and store the map of each word.

    Raises:
        DaguerreError: the model has no text encoder.
    """
    with record_attention(model) as record:
        for step in stream(model, request):
            on_step(step)
        words = record.words()
    with atomic_write(store.path("attention", image_id)) as file:
        file.write(json.dumps({"words": [_to_json(word) for word in words]}).encode())


def _to_json(word: WordMap) -> dict[str, object]:
    """A word and its map as bytes, 0 where the attention is least and 255 where it is most."""
    values = (word.contrast * 255).round().to(torch.uint8)
    return {
        "text": word.text,
        "width": values.shape[1],
        "height": values.shape[0],
        "values": base64.b64encode(values.contiguous().numpy().tobytes()).decode(),
        "low": round(word.heatmap.min().item(), 5),
        "high": round(word.heatmap.max().item(), 5),
    }
