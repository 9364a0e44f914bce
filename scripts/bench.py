"""Make a claimed figure: prepare, train what it needs, print a table, write JSON (and a picture beside it).

python scripts/bench.py retrieval-beauty --data path/to/data --json runs/retrieval-beauty.json --seeds 3
"""

import argparse
import importlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from benches.harness import Bench
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from m6rec.errors import M6RecError, UnknownNameError
from m6rec.runs import versions

BENCHES = sorted(
    path.stem.replace("_", "-")
    for path in (Path(__file__).parent / "benches").glob("*.py")
    if "\ndef run(bench: Bench)" in path.read_text(encoding="utf-8")  # the others are what benches share
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=", ".join(BENCHES))
    parser.add_argument(
        "--data", type=Path, help="folder with the public datasets (not needed by `world`, `prepare` and `simulator`)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here; a picture goes beside it")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a reduced run under a minute; its figures mean nothing")
    parser.add_argument("--work", type=Path, help="keep datasets and runs here (default: a temporary folder)")
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if words.name not in BENCHES:
            raise UnknownNameError("bench", words.name, BENCHES)
        with tempfile.TemporaryDirectory() as temporary:
            run(words, Path(words.work or temporary))
    except M6RecError as error:
        sys.exit(f"error: {error}")


def run(words: argparse.Namespace, work: Path) -> None:
    """Run one bench and write what it found."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(words.data, work, words.seeds, words.quick, words.json)
    started, cpu = time.perf_counter(), time.process_time()
    importlib.import_module(f"benches.{words.name.replace('-', '_')}").run(bench)
    result = {
        "figures": {name: round(value, 6) for name, value in bench.figures.items()},
        "protocol": bench.protocol,
        "recipe": bench.recipe,
        "seeds": words.seeds,
        "quick": words.quick,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "versions": versions(),
        "details": bench.details,
    }
    table = Table("figure", "value", box=None, title=words.name, title_justify="left")
    for name, value in result["figures"].items():
        table.add_row(escape(name), f"{value:.4f}")
    Console().print(table)
    if words.json:
        words.json.parent.mkdir(parents=True, exist_ok=True)
        words.json.write_text(json.dumps(result, indent=1, default=float), encoding="utf-8")


if __name__ == "__main__":
    main()
