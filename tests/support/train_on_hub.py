"""`fairhuman/train.py` with the hub of HF_ENDPOINT, which a fork has imported without."""

import os
import runpy
import sys

from huggingface_hub import constants
from launch import TRAIN

constants.ENDPOINT = os.environ["HF_ENDPOINT"]
constants.HUGGINGFACE_CO_URL_TEMPLATE = (
    constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
)
constants.HF_HUB_OFFLINE = False
sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
