"""Names of folders and files in the diffusers folder layout. Imports no torch, so that finding a model is quick."""

CONFIG_FILE, SCHEDULER_CONFIG_FILE = "config.json", "scheduler_config.json"
DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
WEIGHT_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # names of weight files, without suffixes
NETWORK_FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2")  # folders of the networks of a latent diffusion model
PART_ALIASES = {"vae": "vqvae", "text_encoder": "bert"}  # folder names in pipelines older than Stable Diffusion
SCHEDULER_FOLDERS = ("scheduler", "low_res_scheduler")  # the second belongs to the ×4 upscaler's low-resolution input
# The part that a network saved alone belongs to, by its class; other classes are text encoders.
PART_BY_CLASS = {"UNet2DConditionModel": "unet", "UNet2DModel": "unet", "AutoencoderKL": "vae", "VQModel": "vae"}
