"""The start of a script that ``accelerate launch`` runs. This module knows no torch, so that it can come before it."""

import os
import sys
from collections.abc import Sequence

import psutil  # type: ignore[import-untyped]  # comes with accelerate; its stubs would be one more package


def start_missing_processes() -> None:
    """Make ``accelerate launch --cpu --num_processes N script.py`` run N processes; call it first in a script.

    accelerate starts a single process on a CPU whatever N is, unless it is given an MPI host file (its issue 2741; 1.15
    still does). This finds that out and turns the process into torchrun with N processes. Anywhere else, and in the N
    processes themselves, it does nothing.
    """
    environment = os.environ
    asked = environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in environment
    started = any(name in environment for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    parent = psutil.Process().parent()
    if started or not asked or parent is None:
        return
    if (number := _number_asked(parent.cmdline())) > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        os.execv(sys.executable, [*torchrun, *sys.argv])


def _number_asked(words: Sequence[str]) -> int:
    """Return the number of processes in the words of an ``accelerate launch``.

    >>> _number_asked(["accelerate", "launch", "--num_processes", "2"]), _number_asked(["launch", "--num-processes=3"])
    (2, 3)
    """
    flat = [part for word in words for part in word.replace("_", "-").split("=", 1)]
    place = flat.index("--num-processes") + 1 if "--num-processes" in flat else len(flat)
    return int(flat[place]) if place < len(flat) and flat[place].isdigit() else 1
