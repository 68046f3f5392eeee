"""Jobs: the queue, the workers that run them, and what becomes of the images."""
