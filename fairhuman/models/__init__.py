"""The diffusion models: load, encode, predict; and a tiny SDXL made offline."""
