"""Checkpoints from one form into another: one file or a folder of parts, any precision, without the running average, out of pickle.

    convert("model.ckpt", "model.safetensors", dtype=torch.float16)
    convert("model.safetensors", "model-folder")
    convert("model-folder", "model.safetensors")

No network is built: tensors go from map to file under their new names, so that without a new precision every one keeps its bytes.
What a network predicts is never lost: it is written into the scheduler's config or the file's metadata, and where nobody knows it, the
caller is asked.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.conditioning import Tokenizer, WordPiece
from daguerre.conditioning.tokenizer import EOS
from daguerre.diffusion.denoiser import Prediction
from daguerre.errors import DaguerreError, join_names
from daguerre.models.ldm_bert import LDMBert
from daguerre.weights.catalog import INDEX
from daguerre.weights.diffusers.clip_config import clip_text_json, ldm_bert_json
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.folder_names import CONFIG_FILE, NETWORK_FOLDERS, PART_ALIASES, SCHEDULER_CONFIG_FILE
from daguerre.weights.diffusers.index import LDM_PIPELINES, UPSCALE_PIPELINE, model_index, pipeline_class
from daguerre.weights.diffusers.load import check_overwrite, write_part
from daguerre.weights.diffusers.save import class_name, tokenizer_class
from daguerre.weights.diffusers.scheduler_config import low_res_schedule_json, schedule_json
from daguerre.weights.diffusers.unet_config import unet_json
from daguerre.weights.diffusers.vae_config import first_stage_json
from daguerre.weights.original.components import Component, ema_weights, split_components
from daguerre.weights.original.detect import DetectedModel, detect, read_stored_configs, with_file_schedule
from daguerre.weights.original.families import unknown_prediction_error
from daguerre.weights.original.key_map import (
    KeyTable,
    Rule,
    UNetLayout,
    autoencoder_rules,
    ldm_text_rules,
    open_clip_rules,
    rule,
    unet_rules,
)
from daguerre.weights.original.load import OPEN_CLIP_PAD
from daguerre.weights.tensors.reader import CONFIGS, open_tensors
from daguerre.weights.tensors.safetensors import read_safetensors, write_json, write_safetensors

EXTRA_TENSORS = "unread.safetensors"  # beside the parts: what a single file holds and a folder has no place for, kept for the way back
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    ema: bool | None = None,
    prediction: Prediction | None = None,
    heads: int | tuple[int, ...] | None = None,
    variant: str | None = None,
) -> Path:
    """Write a checkpoint in another form; the target's name tells which: `*.safetensors` is one file, anything else a folder.

    Args:
        source: a single file, the index of its shards, a whole model's folder, or one part's.
        dtype: of the floating-point tensors; None keeps each as it is.
        ema: write the running average in the place of the weights (True), or the weights without it (False). None: from file to file
            both stay, and a folder gets the weights, or the average where there is nothing else.
        prediction, heads: as in `describe`, where the source does not say.
        variant: of a folder's files, such as "fp16".

    Raises:
        DaguerreError: the source does not fit its family (lists every name), it cannot be told what it predicts, or the place cannot be
        written. Nothing is left behind then.
    """
    target = Path(target)
    file = open_tensors(source, variant=variant)
    about = with_file_schedule(detect(file, prediction=prediction, heads=heads, ema=ema))
    if ema is not None and about.unet is None and any(name.startswith("model_ema.") for name in file.shapes):
        raise DaguerreError(f"'{source}' holds only the running average of its UNet; without it nothing is left. Leave ema out.")
    if target.suffix == ".safetensors" and file.container != "folder":
        tensors = _pruned(file.read(), ema)
        _write_file(target, tensors, {**file.metadata, **_prediction_metadata(about, prediction)}, dtype)
        return target
    if faults := {what: names for what, names in about.key_errors().items() if names}:
        lists = "; ".join(f"{len(names)} {what} ({join_names(names)})" for what, names in faults.items())
        raise DaguerreError(f"'{source}' is not converted, because it does not fit the networks that it looks like: {lists}.")
    if about.unet is not None and about.prediction is None:
        raise unknown_prediction_error(source)
    parts = split_components(file.read(name for name in file.shapes if name not in about.contents.ignored), ema=ema).parts
    if target.suffix == ".safetensors":
        names = _single_file_tables(about)
        tensors = {name: tensor for part, table in names.items() for name, tensor in _to_original(table, parts[part], about).items()}
        kept = read_stored_configs(file.metadata)
        if (unread := Path(source) / EXTRA_TENSORS).is_file():
            tensors |= read_safetensors(unread)
            kept.pop("text_encoder", None)  # it describes the tower without its last block
        _write_file(target, tensors, _prediction_metadata(about, about.prediction) | {CONFIGS: json.dumps(kept)}, dtype)
    else:
        _write_folder(target, parts, about, dtype)
    return target


def _pruned(tensors: dict[str, Tensor], ema: bool | None) -> dict[str, Tensor]:
    """The file's tensors under its own names, with the wanted set of the UNet's weights."""
    if ema is None:
        return tensors
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("model_ema.")}
    return rest | ema_weights(tensors) if ema else rest


def _prediction_metadata(about: DetectedModel, prediction: Prediction | None) -> dict[str, str]:
    """The metadata in which a single file says what it predicts."""
    return {"modelspec.prediction_type": "sample" if prediction == "x0" else prediction} if prediction and about.unet else {}


def _write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None) -> None:
    with atomic_path(path) as beside:
        write_safetensors(beside, _cast(tensors, dtype), metadata)


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _prefixed(prefix: str, rules: Iterable[Rule]) -> KeyTable:
    return KeyTable(one._replace(original=prefix + one.original) for one in rules)


def _single_file_tables(about: DetectedModel) -> dict[str, KeyTable]:
    """Part -> the table of its single-file names, as the family's own files have them. A part alone keeps its bare names."""
    tables: dict[str, KeyTable] = {}
    whole = about.unet is not None
    if about.unet is not None:
        tables["unet"] = _prefixed("model.diffusion_model.", unet_rules(UNetLayout.of(about.unet)))
    if about.autoencoder is not None:
        rules = autoencoder_rules(len(about.autoencoder.channels), about.autoencoder.blocks + 1)
        tables["vae"] = _prefixed("first_stage_model." if whole else "", rules)
    family = about.family.name if about.family else ""
    if (words := about.networks.get("text_encoder")) and isinstance(words, LDMBert):
        tables["text_encoder"] = _prefixed("cond_stage_model.transformer." if whole else "", ldm_text_rules(words.config.layers))
    for part, config in about.text_encoders.items():
        open_clip = family.startswith("sd2") or part == "text_encoder_2"
        place = "conditioner.embedders.0" if part == "text_encoder" or family == "sdxl-refiner" else "conditioner.embedders.1"
        place = place if family.startswith("sdxl") else "cond_stage_model" if whole else ""
        prefix = f"{place}.{'model' if open_clip else 'transformer'}." if place else ""
        tables[part] = _prefixed(prefix, open_clip_rules(config.layers) if open_clip else [rule("", "")])
    return tables


def _to_original(table: KeyTable, part: Component, about: DetectedModel) -> dict[str, Tensor]:
    tensors, lost = table.to_original(about.canonical(part))
    if lost:
        raise DaguerreError(f"A single file has no names for {len(lost)} tensors of {part.name} ({join_names(lost)}).")
    return tensors


def _write_folder(target: Path, parts: Mapping[str, Component], about: DetectedModel, dtype: torch.dtype | None) -> None:
    if about.file.container == "folder" and target.exists() and target.samefile(about.file.path):
        raise DaguerreError(f"'{target}' would be written over itself; name another folder.")
    check_overwrite(target, INDEX if about.unet else CONFIG_FILE)
    pipeline = pipeline_class(about.family, about.unet, parts) if about.family and about.unet else None
    if lost := [part for part in parts.values() if part.name not in NETWORK_FOLDERS]:
        raise _no_layout_error(f"holds {', '.join(f'{part.name} ({part.kind.network})' for part in lost)}")
    if not parts:
        raise _no_layout_error("holds nothing that is known here")
    if about.family is not None and pipeline is None:
        raise _no_layout_error(f"is a model of the kind {about.family.name}")
    written = {name: _config(name, about) for name in parts}
    unread: dict[str, Tensor] = {}
    with atomic_path(target) as beside:
        for name, config in written.items():
            tensors = about.canonical(parts[name])
            if name in about.text_encoders:
                tensors, left = _read_of_text(tensors, config)
                unread |= {parts[name].prefix + key: tensor for key, tensor in parts[name].table().to_original(left)[0].items()}
            write_part(beside / _place(name, pipeline) if about.unet else beside, config, tensors, dtype)
            if name in TOKENIZERS:
                _tokenizer(name, about).save(beside / TOKENIZERS[name])
        if unread:
            write_safetensors(beside / EXTRA_TENSORS, _cast(unread, dtype))
        if pipeline is not None and about.prediction is not None:
            schedulers = _schedulers(about, pipeline)
            for name, config in schedulers.items():
                (beside / name).mkdir()
                write_json(beside / name / SCHEDULER_CONFIG_FILE, config)
            write_json(beside / INDEX, _index(about, pipeline, written, schedulers))


AS_ONE_FILE = "it can be written as one file: give a name that ends in .safetensors."


def _no_layout_error(what: str) -> DaguerreError:
    return DaguerreError(f"This file {what}, for which the field has no folder layout; {AS_ONE_FILE}")


def _place(part: str, pipeline: str | None) -> str:
    """The folder of a part, as the field's pipelines call it."""
    return PART_ALIASES.get(part, part) if pipeline in LDM_PIPELINES.values() else part


def _schedulers(about: DetectedModel, pipeline: str) -> dict[str, Json]:
    assert about.family is not None
    assert about.prediction is not None
    kept = about.stored_configs
    found = {"scheduler": kept.get("scheduler") or schedule_json(about.schedule, about.prediction)}
    if pipeline == UPSCALE_PIPELINE:
        found["low_res_scheduler"] = kept.get("low_res_scheduler") or low_res_schedule_json(about.family.schedule)
    return found


def _config(part: str, about: DetectedModel) -> Json:
    """The config.json of a part: the one it came with, or one made from its shapes."""
    kept = about.stored_configs
    if part in kept:
        return kept[part]
    if part == "unet" and about.unet is not None:
        factor = 2 ** (len(about.autoencoder.channels) - 1) if about.autoencoder else 8
        try:
            return unet_json(about.unet, about.sample_size // factor)
        except DaguerreError as error:
            raise DaguerreError(f"{str(error).removesuffix('.')}; {AS_ONE_FILE}") from error
    if part == "vae" and about.autoencoder is not None:
        return first_stage_json(about.autoencoder, about.sample_size)
    tokenizer, words = _tokenizer(part, about), about.networks[part]
    if isinstance(words, LDMBert):
        return ldm_bert_json(words.config, tokenizer.pad)
    config = about.text_encoders[part]
    if about.family is not None and about.family.name.startswith("sd2") and config.projection is not None:
        config = replace(config, layers=config.layers - 1, projection=None)  # readers of a folder always read the last block
    return clip_text_json(config, bos=tokenizer.bos, pad=tokenizer.pad)


def _read_of_text(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A text tower's tensors that its config has a place for, and the others."""
    layers = config["num_hidden_layers"]
    projected = "Projection" in str(config.get("architectures"))

    def has_place(name: str) -> bool:
        if name == "text_projection.weight":
            return projected
        _, layer, number = name.partition(".layers.")
        return not layer or int(number.partition(".")[0]) < layers

    return {k: t for k, t in tensors.items() if has_place(k)}, {k: t for k, t in tensors.items() if not has_place(k)}


def _tokenizer(part: str, about: DetectedModel) -> Tokenizer | WordPiece:
    folder, words = about.file.path / TOKENIZERS[part], about.networks[part]
    if isinstance(words, LDMBert):
        length = words.config.length
        return WordPiece.from_folder(folder, max_length=length) if folder.is_dir() else WordPiece.bert(max_length=length)
    if folder.is_dir():
        return Tokenizer.from_folder(folder)
    blank = part == "text_encoder_2" or (about.family is not None and about.family.name.startswith("sd2"))
    return Tokenizer.clip(pad=OPEN_CLIP_PAD if blank else EOS)


def _index(about: DetectedModel, pipeline: str, written: Mapping[str, Json], schedulers: Mapping[str, Json]) -> dict[str, Any]:
    """model_index.json: the one it came with, without the parts that are not here, or one made from what it holds."""
    if kept := about.stored_configs.get("model_index"):
        there = {*(_place(part, pipeline) for part in written), *(TOKENIZERS[part] for part in written if part in TOKENIZERS), *schedulers}
        return {name: [None, None] if isinstance(entry, list) and name not in there else entry for name, entry in kept.items()}
    classes = {_place(part, pipeline): class_name(config) for part, config in written.items()}
    classes |= {TOKENIZERS[part]: tokenizer_class(_tokenizer(part, about)) for part in written if part in TOKENIZERS}
    return model_index(pipeline, classes | {name: class_name(config) for name, config in schedulers.items()})
