"""A folder of images with captions, as a dataset."""
