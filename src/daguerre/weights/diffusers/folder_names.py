"""Names of folders and files in the diffusers folder layout. Imports no torch, so that finding a model is quick."""

from collections.abc import Collection

CONFIG_FILE, SCHEDULER_CONFIG_FILE = "config.json", "scheduler_config.json"
DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
WEIGHT_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # names of weight files, without suffixes
NETWORK_FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2")  # folders of the networks of a latent diffusion model
PART_ALIASES = {"vae": "vqvae", "text_encoder": "bert"}  # folder names in pipelines older than Stable Diffusion
PIXEL_PIPELINES = ("DDPMPipeline", "DDIMPipeline")  # pipelines of models of pixels: a UNet and a scheduler
SCHEDULER_FOLDERS = ("scheduler", "low_res_scheduler")  # the second belongs to the ×4 upscaler's low-resolution input
# The part that a network saved alone belongs to, by its class; other classes are text encoders.
PART_BY_CLASS = {"UNet2DConditionModel": "unet", "UNet2DModel": "unet", "AutoencoderKL": "vae", "VQModel": "vae"}


def find_weights(names: Collection[str], variant: str | None = None) -> str | None:
    """Among the file names in a network's folder, the one with its weights or the index of its shards; None if there is none.

    variant: such as "fp16". Default: full precision, or half precision if there is nothing else.
    """
    for tail in (f".{variant}",) if variant else ("", ".fp16"):
        candidates = [
            name
            for stem in WEIGHT_STEMS
            for name in (f"{stem}{tail}.safetensors", f"{stem}.safetensors.index{tail}.json", f"{stem}{tail}.safetensors.index.json")
        ]
        candidates += [f"{stem}{tail}.bin" for stem in WEIGHT_STEMS]
        if found := next((name for name in candidates if name in names), None):
            return found
    return None
