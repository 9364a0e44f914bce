"""Train a recipe, on one process or many.

accelerate launch --num_processes 2 --cpu scripts/train.py retrieval data=DIR out=RUN [key=value ...] [--resume]
"""

from m6rec.training.launch import start_missing_processes

start_missing_processes()  # before torch: `accelerate launch --cpu` would start one process, however many are asked for

import logging  # noqa: E402
import sys  # noqa: E402

from m6rec.errors import M6RecError  # noqa: E402
from m6rec.recipe import read_recipe  # noqa: E402
from m6rec.workflows.stages import train  # noqa: E402


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    words = [word for word in sys.argv[1:] if word != "--resume"]
    if not words:
        sys.exit(__doc__)
    try:
        train(read_recipe(words[0], words[1:]), resume="--resume" in sys.argv)
    except M6RecError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
