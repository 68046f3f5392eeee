"""Attach adapters to a model: a new bundle that shares every tensor that no adapter changes. The model itself stays as it is.

    model = load("sd15.safetensors")
    styled = with_adapters(model, [load_lora("ink.safetensors").scaled(0.8), load_embedding("cat-toy.pt")])

Changes of a weight are computed in float32 from the weight, added one adapter after the other, and rounded once to the weight's dtype.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from daguerre.adapters.embedding import WIDTHS, Embedding
from daguerre.adapters.image_adapter import ImageAdapter
from daguerre.adapters.lora.lora import CONTEXT_FAMILIES, Lora
from daguerre.adapters.lora.module_names import LayerName, NetworkRole, Target, layer_table
from daguerre.adapters.lora.weight_delta import MatrixDelta, Rows, WeightDelta
from daguerre.adapters.record import AdapterRecord
from daguerre.conditioning import SDXLConditioner, TextConditioner
from daguerre.errors import DaguerreError, join_names
from daguerre.models.clip import CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.runtime.weight_edits import WeightEdit, with_edited_weights

Adapter = Lora | Embedding | ImageAdapter
Change = tuple[WeightDelta, float]  # and its strength
TOKEN_EMBEDDING = "text_model.embeddings.token_embedding"

log = logging.getLogger(__name__)


def with_adapters(model: LatentDiffusion, adapters: Sequence[Adapter]) -> LatentDiffusion:
    """The model with adapters attached, in order; without adapters, or with scales of 0 only, it computes exactly as before.

    Raises:
        DaguerreError: an adapter does not fit the model; says which, and for which models it is.
    """
    loras = [adapter for adapter in adapters if isinstance(adapter, Lora)]
    embeddings = [adapter for adapter in adapters if isinstance(adapter, Embedding)]
    embeddings += [embedding for lora in loras for embedding in lora.embeddings]
    changed = _with_embeddings(_with_loras(model, loras), embeddings)
    return replace(changed, adapters=(*model.adapters, *adapters))


def attached_records(model: LatentDiffusion) -> tuple[AdapterRecord, ...]:
    """The records of the adapters of a model, in the order in which they were attached."""
    return tuple(adapter.record for adapter in model.adapters if isinstance(adapter, Adapter))


def adapted_networks(model: LatentDiffusion) -> dict[NetworkRole, nn.Module]:
    """The networks of a model that weight-changing adapters know."""
    return {"unet": model.unet, **text_encoders_of(model)}


def text_encoders_of(model: LatentDiffusion) -> dict[NetworkRole, CLIPText]:
    """The CLIP text encoders of a model by role; empty if it has none. SDXL's refiner has only the second."""
    if isinstance(model.conditioner, TextConditioner):
        return {"te1": model.conditioner.encoder}
    if isinstance(model.conditioner, SDXLConditioner):
        towers = [tower.encoder for tower in model.conditioner.towers if isinstance(tower, TextConditioner)]
        roles: Sequence[NetworkRole] = ("te1", "te2") if len(towers) == 2 else ("te2",)
        return dict(zip(roles, towers, strict=True))
    return {}


def matched_layers(lora: Lora, networks: Mapping[NetworkRole, nn.Module]) -> dict[LayerName, tuple[NetworkRole, tuple[Target, ...]]]:
    """The layers of a LoRA that networks have, each with its network and the layers there."""
    tables = {role: layer_table(network) for role, network in networks.items()}
    found = {}
    for name in lora.layers:
        # A PEFT folder of a text encoder does not say which network it is for.
        roles = (name.role,) if name.role != "unet" else tuple(tables)
        role = next((role for role in roles if name.path in tables.get(role, {})), None)
        if role is not None:
            found[name] = role, tables[role][name.path]
    return found


def _with_loras(model: LatentDiffusion, loras: Sequence[Lora]) -> LatentDiffusion:
    networks = adapted_networks(model)
    edited: dict[NetworkRole, nn.Module] = {
        role: with_edited_weights(networks[role], edits) for role, edits in weight_edits(loras, networks, model.name).items()
    }
    unet = edited.get("unet", model.unet)
    assert isinstance(unet, UNet)
    encoders: dict[NetworkRole, CLIPText] = {role: network for role, network in edited.items() if isinstance(network, CLIPText)}
    return with_text_encoders(replace(model, unet=unet), encoders)


def weight_edits(loras: Sequence[Lora], networks: Mapping[NetworkRole, nn.Module], model: str) -> dict[NetworkRole, dict[str, WeightEdit]]:
    """The edits of each network's parameters that LoRAs make one after the other; those of strength 0 make none.

    Args:
        networks: of the model; only names and shapes are used.
        model: its name, for errors.

    Raises:
        DaguerreError: a LoRA does not fit.
    """
    changes: dict[NetworkRole, dict[str, list[Change]]] = defaultdict(lambda: defaultdict(list))
    for lora in loras:
        for role, name, delta, strength in _changes(lora, model, networks):
            changes[role][name].append((delta, strength))
    return {role: _edits(networks[role], by_name) for role, by_name in changes.items()}


def with_text_encoders(model: LatentDiffusion, encoders: Mapping[NetworkRole, CLIPText]) -> LatentDiffusion:
    """The model with some of its CLIP text encoders replaced."""
    if not encoders:
        return model
    if isinstance(model.conditioner, TextConditioner):
        return replace(model, conditioner=model.conditioner.with_encoder(encoders["te1"]))
    assert isinstance(model.conditioner, SDXLConditioner)
    towers = [tower for tower in model.conditioner.towers if isinstance(tower, TextConditioner)]
    roles = text_encoders_of(model)
    changed = [tower.with_encoder(encoders.get(role, tower.encoder)) for role, tower in zip(roles, towers, strict=True)]
    return replace(model, conditioner=model.conditioner.with_towers(changed))


def _changes(lora: Lora, model: str, networks: Mapping[NetworkRole, nn.Module]) -> list[tuple[NetworkRole, str, WeightDelta, float]]:
    """The changes of a LoRA: network, parameter name, change and strength; those of strength 0 are left out."""
    _check_family(lora, model, networks)
    matched = matched_layers(lora, networks)
    name, count = lora.record.name, len(lora.layers)
    if not matched:
        raise DaguerreError(
            f"The LoRA {name!r} does not fit {model!r}: none of its {count} layers is in this model "
            f"({join_names(layer.path[:80] for layer in lora.layers)}). {_made_for(lora)}"
        )
    for note in lora.notes:
        log.warning("The LoRA %r: %s", name, note)
    if missing := [layer.path for layer in lora.layers if layer not in matched]:
        log.warning("%d of %d layers of the LoRA %r are not in this model (%s).", len(missing), count, name, join_names(missing))
    if lora.unknown:
        log.warning("%d names in the LoRA %r are not read (%s).", len(lora.unknown), name, join_names(lora.unknown))
    changes = []
    for layer, (role, targets) in matched.items():
        strength = lora.strength(layer) if role == "unet" else lora.strength(LayerName(role, layer.path))
        if strength == 0:
            continue
        for kind, delta in (("weight", lora.layers[layer].weight), ("bias", lora.layers[layer].bias)):
            if delta is None:
                continue
            delta = delta if lora.record.rank is None else delta.with_rank(lora.record.rank)
            for target in targets:
                part = Rows(delta, target.part, target.parts) if isinstance(delta, MatrixDelta) and target.parts > 1 else delta
                parameter = f"{target.path}.{kind}"
                changes.append((role, parameter, _Checked(part, lora.record.name, parameter), strength))
    return changes


def _check_family(lora: Lora, model: str, networks: Mapping[NetworkRole, nn.Module]) -> None:
    """Raise DaguerreError if a LoRA was made for text states of another width than the model's."""
    widths = [
        layer.weight.in_features
        for name, layer in lora.layers.items()
        if name.role == "unet" and name.path.endswith("attn2_to_k") and layer.weight is not None
    ]
    unet = networks.get("unet")
    made_for, own = next((width for width in widths if width), None), unet.config.context_width if isinstance(unet, UNet) else None
    if made_for is not None and own is not None and made_for != own:
        raise DaguerreError(
            f"The LoRA {lora.record.name!r} was made for {_family_name(made_for)} and does not fit {model!r}, which is "
            f"{_family_name(own)}. Use a model or a LoRA of the same family."
        )


def _family_name(width: int) -> str:
    family = CONTEXT_FAMILIES.get(width)
    return f"{family} (text width {width})" if family else f"a model of text width {width}"


def _made_for(lora: Lora) -> str:
    return f"It was made for {lora.family}; use a model of that family." if lora.family else "Use it with the model it was made for."


class _Checked(WeightDelta):
    """A change whose errors name the LoRA and the parameter."""

    def __init__(self, inner: WeightDelta, lora: str, parameter: str) -> None:
        self.inner, self.lora, self.parameter = inner, lora, parameter

    def __call__(self, weight: Tensor) -> Tensor:
        return self.apply(weight, 1.0) - weight

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        try:
            return self.inner.apply(weight, strength)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise DaguerreError(
                f"The LoRA {self.lora!r} does not fit this model: its tensors for {self.parameter} do not give the shape "
                f"{list(weight.shape)}. Use it with the model it was made for."
            ) from error


def _edits(network: nn.Module, changes: Mapping[str, Sequence[Change]]) -> dict[str, WeightEdit]:
    parameters = dict(network.named_parameters())
    for name, (change, *_) in changes.items():
        if name not in parameters:
            lora = change[0].lora if isinstance(change[0], _Checked) else ""
            raise DaguerreError(f"The LoRA {lora!r} changes {name}, which this model does not have. Use it with the model it was made for.")
    return {name: _edit(parts) for name, parts in changes.items()}


def _edit(changes: Sequence[Change]) -> WeightEdit:
    def edit(weight: Tensor) -> Tensor:
        if weight.is_meta:
            return weight
        result = weight.float()
        for delta, strength in changes:
            result = delta.apply(result, strength)
        layout = torch.channels_last if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) else None
        return result.to(weight.dtype, memory_format=layout or torch.contiguous_format)

    return edit


def _with_embeddings(model: LatentDiffusion, embeddings: Sequence[Embedding]) -> LatentDiffusion:
    """The model with new words in all tokenizers and text encoders, also those of its refiner."""
    for embedding in embeddings:
        if isinstance(model.conditioner, TextConditioner):
            model = replace(model, conditioner=_with_word(model.conditioner, embedding))
        elif isinstance(model.conditioner, SDXLConditioner):
            towers = [_with_word(tower, embedding) for tower in model.conditioner.towers if isinstance(tower, TextConditioner)]
            model = replace(model, conditioner=model.conditioner.with_towers(towers))
        else:
            raise DaguerreError(f"The embedding {embedding.word!r} needs a model with a CLIP text encoder; {model.name!r} has none.")
    if embeddings and model.refiner is not None:
        return replace(model, refiner=_with_embeddings(model.refiner, embeddings))
    return model


def _with_word(conditioner: TextConditioner, embedding: Embedding) -> TextConditioner:
    """A text encoder whose tokenizer knows the word and whose token embedding has its vectors."""
    encoder = conditioner.encoder
    width = encoder.config.width
    if width not in embedding.vectors:
        has = " and ".join(f"{size} ({WIDTHS[size]})" if size in WIDTHS else str(size) for size in embedding.vectors)
        raise DaguerreError(
            f"The embedding {embedding.word!r} has vectors of width {has}, and this model's text encoder needs {width}"
            f"{f' ({WIDTHS[width]})' if width in WIDTHS else ''}. Use an embedding for this family of models."
        )
    tokenizer, vectors = conditioner.tokenizer.with_words({embedding.word: embedding.count}), embedding.vectors[width]
    # The ids of the new words follow the tokenizer's last one; a token embedding may have more rows.
    first = len(conditioner.tokenizer)
    edited = with_edited_weights(encoder, {f"{TOKEN_EMBEDDING}.weight": lambda weight: torch.cat([weight[:first], vectors.to(weight)])})
    layer = edited.get_submodule(TOKEN_EMBEDDING)
    assert isinstance(layer, nn.Embedding)
    layer.num_embeddings = first + len(vectors)
    return conditioner.with_encoder(edited, tokenizer)
