"""What is on the disk: the database, the image files, and images that callers bring."""
