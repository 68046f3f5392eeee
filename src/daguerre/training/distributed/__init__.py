"""Training in several processes: which of them this is, and what each keeps."""
