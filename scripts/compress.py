"""Compress a run, on one process or many: the same as `m6rec compress`.

accelerate launch --num_processes 2 --cpu scripts/compress.py RUN METHOD out=RUN2 [key=value ...]
"""

from m6rec.training.launch import start_missing_processes

start_missing_processes()  # before torch: `accelerate launch --cpu` would start one process, however many are asked for

import logging  # noqa: E402
import sys  # noqa: E402

from m6rec.errors import M6RecError  # noqa: E402
from m6rec.workflows.compression import compress_run  # noqa: E402


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        compress_run(sys.argv[1], sys.argv[2], sys.argv[3:])
    except M6RecError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
