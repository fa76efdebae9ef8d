"""The operations of a step that belong to FairHuman: region losses, Gram matrix, combination.

Installed as `fairhuman.kernels`. Nothing here knows of SDXL, DeepSpeed or configs.
"""
