"""Names in the field's folder layout. Imports no torch, so that finding a model is quick."""

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")  # the folders of a model that hold networks of ours
SCHEDULERS = ("scheduler", "low_res_scheduler")  # the folders with a noise schedule, of the model and of the ×4 upscaler's small picture
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of the files with weights
CLASSES = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}  # of networks that lie in a folder alone; others are text encoders
