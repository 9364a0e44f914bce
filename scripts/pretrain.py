"""Pretrain: a small model from nothing (`pretrain-small`), or a pretrained one on a domain's text (`pretrain`).

accelerate launch --num_processes 2 --cpu scripts/pretrain.py pretrain-small data=DIR out=RUN [key=value ...] [--resume]
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    # The loop is one for all tasks; so is the script.
    runpy.run_path(str(Path(__file__).with_name("train.py")), run_name="__main__")
