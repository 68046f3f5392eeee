"""Convert checkpoints: one file or a folder, any precision, with or without EMA weights, from pickle to safetensors.

    convert("model.ckpt", "model.safetensors", dtype=torch.float16)
    convert("model.safetensors", "model-folder")
    convert("model-folder", "model.safetensors")

No network is built: tensors are copied from a memory map under their new names, so without a new dtype every tensor keeps its bytes. The
prediction type is always stored, in the scheduler's config or the file's metadata; if it is unknown, the caller must give it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path, check_overwrite
from daguerre.diffusion.denoiser import Prediction
from daguerre.errors import DaguerreError, join_names
from daguerre.models.ldm_bert import LDMBert
from daguerre.weights.catalog import INDEX
from daguerre.weights.diffusers.clip_config import clip_text_json, ldm_bert_json
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.folder_names import CONFIG_FILE, NETWORK_FOLDERS, PART_ALIASES, SCHEDULER_CONFIG_FILE
from daguerre.weights.diffusers.index import LDM_PIPELINES, UPSCALE_PIPELINE, model_index, pipeline_class
from daguerre.weights.diffusers.load import write_part
from daguerre.weights.diffusers.save import class_name, tokenizer_class
from daguerre.weights.diffusers.scheduler_config import PREDICTION_TYPES, low_res_schedule_json, schedule_json
from daguerre.weights.diffusers.unet_config import unet_json
from daguerre.weights.diffusers.vae_config import first_stage_json
from daguerre.weights.loading import resolve_path
from daguerre.weights.original.components import Component, ema_weights, split_components
from daguerre.weights.original.detect import DetectedModel, detect, with_file_schedule
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
from daguerre.weights.original.tokenizer import TOKENIZERS, stored_tokenizer, tokenizer_of
from daguerre.weights.tensors.reader import CONFIGS, TensorFile, open_tensors
from daguerre.weights.tensors.safetensors import read_safetensors, write_json, write_safetensors

PREDICTION_NAMES = {prediction: name for name, prediction in PREDICTION_TYPES.items()}
EXTRA_TENSORS = "unread.safetensors"  # tensors of a single file that the folder layout lacks, stored to convert back


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    ema: bool | None = None,
    prediction: Prediction | None = None,
    heads: int | tuple[int, ...] | None = None,
    variant: str | None = None,
    drop_unknown: bool = False,
    edit: Callable[[TensorFile], TensorFile] | None = None,
) -> Path:
    """Convert a checkpoint. A target named `*.safetensors` becomes one file, any other name a folder.

    Args:
        source: a single file, the index of shards, a model's folder, the folder of one network, an embedded model, or a Hub id.
        dtype: of the floating-point tensors. Default: unchanged.
        ema: write the EMA weights as the weights (True), or only the plain weights (False). None: a file keeps both, and a folder gets the
            plain weights, or the EMA weights if there is nothing else.
        prediction, heads: as in `detect`, if the source does not specify it.
        variant: of a folder's files, such as "fp16".
        edit: changes the opened source, such as `adapters.lora.merge.merge_loras`; names and shapes stay.
        drop_unknown: leave out tensors that no network has, such as remains of a LoRA.

    Raises:
        DaguerreError: the source does not fit its family (lists every name), its prediction type is unknown, or the target cannot be
            written. No partial output remains.
    """
    target, path = Path(target), resolve_path(source, offline=False, variant=variant)
    file = open_tensors(path, variant=variant)
    file = file if edit is None else edit(file)
    detected = with_file_schedule(detect(file, prediction=prediction, heads=heads, ema=ema))
    if drop_unknown and detected.networks:
        unknown = set(detected.unknown_names())
        file = replace(file, shapes={name: shape for name, shape in file.shapes.items() if name not in unknown})
        detected = with_file_schedule(detect(file, prediction=prediction, heads=heads, ema=ema))
    if ema is not None and detected.unet is None and any(name.startswith("model_ema.") for name in file.shapes):
        raise DaguerreError(f"'{path}' has only EMA weights of its UNet, so there is nothing to choose. Omit ema.")
    if target.suffix == ".safetensors" and file.container != "folder":
        tensors = _with_markers(_select_weights(file.read(), ema), detected)
        metadata = dict(file.metadata)
        if prediction is not None and "scheduler" in detected.stored_configs:
            metadata[CONFIGS] = json.dumps(_stored_configs(detected))
        _write_file(target, tensors, metadata | _prediction_metadata(detected, prediction), dtype)
        return target
    detected.check_keys()
    if detected.unet is not None and detected.prediction is None:
        raise unknown_prediction_error(path)
    parts = split_components(file.read(name for name in file.shapes if name not in detected.contents.ignored), ema=ema).parts
    if target.suffix == ".safetensors":
        names = _single_file_tables(detected)
        tensors = {name: tensor for part, table in names.items() for name, tensor in _to_original(table, parts[part], detected).items()}
        stored = _stored_configs(detected)
        stored |= {TOKENIZERS[part]: found for part in parts if part in TOKENIZERS and (found := stored_tokenizer(part, detected))}
        if (extra := path / EXTRA_TENSORS).is_file():
            tensors |= read_safetensors(extra)
            stored.pop("text_encoder", None)  # it describes the text encoder without its last block
        metadata = _prediction_metadata(detected, detected.prediction) | {CONFIGS: json.dumps(stored)}
        _write_file(target, _with_markers(tensors, detected), metadata, dtype)
    else:
        _write_folder(target, parts, detected, dtype)
    return target


def _stored_configs(detected: DetectedModel) -> dict[str, Json]:
    """The configs that the source stores, with the prediction type that counts."""
    stored = dict(detected.stored_configs)
    if "scheduler" in stored and detected.prediction is not None:
        stored["scheduler"] = stored["scheduler"] | {"prediction_type": PREDICTION_NAMES[detected.prediction]}
    return stored


def _with_markers(tensors: dict[str, Tensor], detected: DetectedModel) -> dict[str, Tensor]:
    """The tensors of a single file with the empty ones that mark v-prediction and zero terminal SNR for other programs.

    Stable Diffusion 2 has no marker, because both prediction types are usual there.
    """
    if detected.family is None or detected.prediction is None:
        return tensors
    needed = {
        "v_pred": detected.prediction == "v" and detected.family.prediction == "epsilon",
        "ztsnr": detected.schedule.zero_terminal_snr,
    }
    if detected.family.prediction == "epsilon" and detected.prediction != "v":
        tensors = {name: tensor for name, tensor in tensors.items() if name != "v_pred"}
    return tensors | {name: torch.zeros(0) for name, wanted in needed.items() if wanted and name not in tensors}


def _select_weights(tensors: dict[str, Tensor], ema: bool | None) -> dict[str, Tensor]:
    """The tensors under their own names, with the plain or the EMA weights of the UNet."""
    if ema is None:
        return tensors
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("model_ema.")}
    return rest | ema_weights(tensors) if ema else rest


def _prediction_metadata(detected: DetectedModel, prediction: Prediction | None) -> dict[str, str]:
    """The metadata of a single file that states its prediction type."""
    return {"modelspec.prediction_type": "sample" if prediction == "x0" else prediction} if prediction and detected.unet else {}


def _write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None) -> None:
    with atomic_path(path) as temporary:
        write_safetensors(temporary, _cast(tensors, dtype), metadata)


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _prefixed(prefix: str, rules: Iterable[Rule]) -> KeyTable:
    return KeyTable(one._replace(original=prefix + one.original) for one in rules)


def _single_file_tables(detected: DetectedModel) -> dict[str, KeyTable]:
    """Part -> its key table for a single file of this family. A single network has no prefix."""
    tables: dict[str, KeyTable] = {}
    is_model = detected.unet is not None
    if detected.unet is not None:
        tables["unet"] = _prefixed("model.diffusion_model.", unet_rules(UNetLayout.of(detected.unet)))
    if detected.autoencoder is not None:
        rules = autoencoder_rules(len(detected.autoencoder.channels), detected.autoencoder.blocks + 1)
        tables["vae"] = _prefixed("first_stage_model." if is_model else "", rules)
    family = detected.family.name if detected.family else ""
    if (encoder := detected.networks.get("text_encoder")) and isinstance(encoder, LDMBert):
        tables["text_encoder"] = _prefixed("cond_stage_model.transformer." if is_model else "", ldm_text_rules(encoder.config.layers))
    for part, config in detected.text_encoders.items():
        open_clip = family.startswith("sd2") or part == "text_encoder_2"
        owner = "conditioner.embedders.0" if part == "text_encoder" or family == "sdxl-refiner" else "conditioner.embedders.1"
        owner = owner if family.startswith("sdxl") else "cond_stage_model" if is_model else ""
        prefix = f"{owner}.{'model' if open_clip else 'transformer'}." if owner else ""
        tables[part] = _prefixed(prefix, open_clip_rules(config.layers) if open_clip else [rule("", "")])
    return tables


def _to_original(table: KeyTable, part: Component, detected: DetectedModel) -> dict[str, Tensor]:
    tensors, unnamed = table.to_original(detected.canonical(part))
    if unnamed:
        raise DaguerreError(f"The single-file format has no names for {len(unnamed)} tensors of {part.name} ({join_names(unnamed)}).")
    return tensors


def _write_folder(target: Path, parts: Mapping[str, Component], detected: DetectedModel, dtype: torch.dtype | None) -> None:
    if detected.file.container == "folder" and target.exists() and target.samefile(detected.file.path):
        raise DaguerreError(f"'{target}' is both source and target; name another folder.")
    check_overwrite(target, INDEX if detected.unet else CONFIG_FILE)
    pipeline = pipeline_class(detected.family, detected.unet, parts) if detected.family and detected.unet else None
    if unsupported := [part for part in parts.values() if part.name not in NETWORK_FOLDERS]:
        raise _no_layout_error(f"holds {', '.join(f'{part.name} ({part.kind.network})' for part in unsupported)}")
    if not parts:
        raise _no_layout_error("holds no known network")
    if detected.family is not None and pipeline is None:
        raise _no_layout_error(f"is a model of the family {detected.family.name}")
    written = {name: _config(name, detected) for name in parts}
    extra: dict[str, Tensor] = {}
    with atomic_path(target) as temporary:
        for name, config in written.items():
            tensors = detected.canonical(parts[name])
            if name in detected.text_encoders:
                tensors, unused = _split_text_tensors(tensors, config)
                extra |= {parts[name].prefix + key: tensor for key, tensor in parts[name].table().to_original(unused)[0].items()}
            write_part(temporary / _part_folder(name, pipeline) if detected.unet else temporary, config, tensors, dtype)
            if name in TOKENIZERS:
                tokenizer_of(name, detected).save(temporary / TOKENIZERS[name])
        if extra:
            write_safetensors(temporary / EXTRA_TENSORS, _cast(extra, dtype))
        if pipeline is not None and detected.prediction is not None:
            schedulers = _schedulers(detected, pipeline)
            for name, config in schedulers.items():
                (temporary / name).mkdir()
                write_json(temporary / name / SCHEDULER_CONFIG_FILE, config)
            write_json(temporary / INDEX, _index(detected, pipeline, written, schedulers))


AS_ONE_FILE = "write it as one file: give a name that ends in .safetensors."


def _no_layout_error(what: str) -> DaguerreError:
    return DaguerreError(f"This file {what}, for which there is no folder layout; {AS_ONE_FILE}")


def _part_folder(part: str, pipeline: str | None) -> str:
    """The folder name of a part in a pipeline."""
    return PART_ALIASES.get(part, part) if pipeline in LDM_PIPELINES.values() else part


def _schedulers(detected: DetectedModel, pipeline: str) -> dict[str, Json]:
    assert detected.family is not None
    assert detected.prediction is not None
    stored = detected.stored_configs
    found = {"scheduler": _stored_configs(detected).get("scheduler") or schedule_json(detected.schedule, detected.prediction)}
    if pipeline == UPSCALE_PIPELINE:
        found["low_res_scheduler"] = stored.get("low_res_scheduler") or low_res_schedule_json(detected.family.schedule)
    return found


def _config(part: str, detected: DetectedModel) -> Json:
    """The config.json of a part: the stored one, or one derived from its shapes."""
    stored = detected.stored_configs
    if part in stored:
        return stored[part]
    if part == "unet" and detected.unet is not None:
        factor = 2 ** (len(detected.autoencoder.channels) - 1) if detected.autoencoder else 8
        try:
            return unet_json(detected.unet, detected.sample_size // factor)
        except DaguerreError as error:
            raise DaguerreError(f"{str(error).removesuffix('.')}; {AS_ONE_FILE}") from error
    if part == "vae" and detected.autoencoder is not None:
        return first_stage_json(detected.autoencoder, detected.sample_size)
    tokenizer, encoder = tokenizer_of(part, detected), detected.networks[part]
    if isinstance(encoder, LDMBert):
        return ldm_bert_json(encoder.config, tokenizer.pad)
    config = detected.text_encoders[part]
    if detected.family is not None and detected.family.name.startswith("sd2") and config.projection is not None:
        config = replace(config, layers=config.layers - 1, projection=None)  # loaders of a folder always use the last block
    return clip_text_json(config, bos=tokenizer.bos, pad=tokenizer.pad)


def _split_text_tensors(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the tensors of a text encoder into those that its config describes and the others."""
    layers = config["num_hidden_layers"]
    projected = "Projection" in str(config.get("architectures"))

    def is_described(name: str) -> bool:
        if name == "text_projection.weight":
            return projected
        _, layer, number = name.partition(".layers.")
        return not layer or int(number.partition(".")[0]) < layers

    return {k: t for k, t in tensors.items() if is_described(k)}, {k: t for k, t in tensors.items() if not is_described(k)}


def _index(detected: DetectedModel, pipeline: str, written: Mapping[str, Json], schedulers: Mapping[str, Json]) -> dict[str, Any]:
    """model_index.json: the stored one without missing parts, or a new one."""
    if stored := detected.stored_configs.get("model_index"):
        tokenizers = [TOKENIZERS[part] for part in written if part in TOKENIZERS]
        present = {*(_part_folder(part, pipeline) for part in written), *tokenizers, *schedulers}
        return {name: [None, None] if isinstance(entry, list) and name not in present else entry for name, entry in stored.items()}
    classes = {_part_folder(part, pipeline): class_name(config) for part, config in written.items()}
    classes |= {TOKENIZERS[part]: tokenizer_class(tokenizer_of(part, detected)) for part in written if part in TOKENIZERS}
    return model_index(pipeline, classes | {name: class_name(config) for name, config in schedulers.items()})
