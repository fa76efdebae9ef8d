"""Keeps other libraries' messages off the terminal."""

from __future__ import annotations

import logging
import os
import warnings

import torch


def quiet() -> None:
    """Keep other libraries' chatter off the terminal: their errors stay, and our warnings.

    To be called before torch's distributed, DeepSpeed, bitsandbytes or transformers are used.
    """
    if not torch.cuda.is_available():
        # Without it DeepSpeed warns, from every process, that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("deepspeed", "DeepSpeed", "bitsandbytes", "torch.distributed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("torch", "deepspeed", "transformers", "diffusers", "bitsandbytes", "accelerate"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    import deepspeed.utils.logging as deepspeed_logging
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    deepspeed_logging.logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
