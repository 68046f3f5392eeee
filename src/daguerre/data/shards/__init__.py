"""Images in tar files of the webdataset format: write them, find what is in them, and read them by index."""
