"""Names in the field's folder layout. Imports no torch, so that finding a model is quick."""

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")  # the folders of a model that hold networks of ours
ALIASES = {"vae": "vqvae", "text_encoder": "bert"}  # what the folders of models before Stable Diffusion are called
SCHEDULERS = ("scheduler", "low_res_scheduler")  # the folders with a noise schedule, of the model and of the ×4 upscaler's small picture
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of the files with weights
# The part of a network that lies in a folder alone, by its class; others are text encoders.
PART_BY_CLASS = {"UNet2DConditionModel": "unet", "UNet2DModel": "unet", "AutoencoderKL": "vae", "VQModel": "vae"}
