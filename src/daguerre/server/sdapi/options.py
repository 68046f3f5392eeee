"""The options of the web UI: a fixed list, of which the model and the CLIP layer can be changed."""

from collections.abc import Mapping
from typing import Any

from daguerre.server.errors import ApiError
from daguerre.server.models import ModelChoice
from daguerre.server.studio import Studio

CLIP_KEY = "sdapi.CLIP_stop_at_last_layers"
MAX_CLIP_SKIP = 12
FIXED: Mapping[str, Any] = {
    "sd_vae": "Automatic",
    "samples_format": "png",
    "eta_ancestral": 1.0,
    "eta_ddim": 0.0,
    "live_previews_enable": True,
    "show_progress_every_n_steps": 1,
    "upscaler_for_img2img": None,
    "face_restoration": False,
    "return_grid": False,
}


def model_title(studio: Studio, choice: ModelChoice) -> str:
    """The name of a model in lists, with its hash once that is known."""
    facts = studio.models.facts(choice.name)
    return f"{choice.file_name} [{facts.hash[:10]}]" if facts and facts.hash else choice.file_name


def current_options(studio: Studio) -> dict[str, Any]:
    """All options with their values."""
    choice, facts = studio.models.find(studio.model), studio.models.facts(studio.model)
    return {
        "sd_model_checkpoint": model_title(studio, choice),
        "sd_checkpoint_hash": facts.hash if facts else None,
        "CLIP_stop_at_last_layers": studio.store.settings().get(CLIP_KEY) or 1,
        **FIXED,
    }


def change_options(studio: Studio, changes: Mapping[str, Any]) -> None:
    """Change options. Those that cannot be changed are accepted with the value that they have, as clients send all of them back.

    Raises:
        ApiError: there is no such option or model, or the value is wrong; nothing is changed.
    """
    known = current_options(studio)
    for name, value in changes.items():
        if name not in known:
            raise ApiError(422, f"There is no option {name[:60]!r}; there are {', '.join(known)}.", code="unknown_option", param=name[:60])
        if isinstance(value, str) and ("\n" in value or "\r" in value):
            raise ApiError(422, f"{name} has a line break.", code="invalid_request", param=name)
        changeable = ("sd_model_checkpoint", "CLIP_stop_at_last_layers", "sd_checkpoint_hash")  # the hash follows from the model
        if name not in changeable and value != known[name]:
            raise ApiError(422, f"{name} is always {known[name]!r} here.", code="fixed_option", param=name)
    skip = changes.get("CLIP_stop_at_last_layers", known["CLIP_stop_at_last_layers"])
    if type(skip) not in (int, float) or not 1 <= skip <= MAX_CLIP_SKIP:
        message = f"CLIP_stop_at_last_layers is {str(skip)[:20]}; it is 1 to {MAX_CLIP_SKIP}."
        raise ApiError(422, message, code="invalid_request", param="CLIP_stop_at_last_layers")
    model = changes.get("sd_model_checkpoint")
    if model is not None and not isinstance(model, str):
        raise ApiError(422, "sd_model_checkpoint is a text.", code="invalid_request", param="sd_model_checkpoint")
    if model and model != known["sd_model_checkpoint"]:
        studio.select_model(model)
    studio.store.save_settings({CLIP_KEY: None if skip == 1 else int(skip)})
