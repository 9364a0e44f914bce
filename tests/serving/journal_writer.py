"""A process that writes a journal until it is killed: prints each number once the journal has acknowledged it."""

import json
import sys
from functools import partial
from pathlib import Path

from m6rec.serving.journal import Journal


def read(journal: Journal) -> list[int]:
    """Return the numbers that the journal holds, oldest first."""
    folder = journal.snapshot
    numbers = [] if folder is None else json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    return numbers + [change["number"] for change in journal.replay()]


def main(folder: str) -> None:
    journal = Journal(Path(folder))
    numbers = read(journal)
    print("open", flush=True)
    while True:
        number = len(numbers)
        journal.append([{"number": number}])
        print(number, flush=True)
        numbers.append(number)
        if number % 5 == 4:
            journal.keep_snapshot(journal.rotate(), partial(write, numbers))


def write(numbers: list[int], folder: Path) -> None:
    (folder / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
