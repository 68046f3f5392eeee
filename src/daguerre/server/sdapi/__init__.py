"""The HTTP interface of the Stable Diffusion web UI."""
