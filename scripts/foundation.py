"""Make the embedded foundation anew: prepare the sample world, pretrain, measure, and write it into the package.

python scripts/foundation.py --work DIR [key=value ...]        every word goes into the recipe `foundation`
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

import torch

import m6rec
from m6rec.assemble import open_experiment, train_run
from m6rec.backbones.create import save_backbone
from m6rec.backbones.foundation import CARD_FILE, file_hash
from m6rec.backbones.resolve import resolve_backbone
from m6rec.config import plain
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.world import World, WorldConfig
from m6rec.errors import M6RecError
from m6rec.recipe import read_recipe
from m6rec.runs import MODEL_FOLDER, read_card, versions

# The demo's world, so that the part that demo and benches hold out is held out here too; with more dialogues, for a
# default world has few, and these are further ones of the same kind.
WORLD = WorldConfig(dialogues=3_000)
LIMIT_BYTES = 10 * 2**20
MEASURED = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="settings of the recipe, e.g. training.max_cpu_seconds=180")
    parser.add_argument("--work", type=Path, help="keep dataset and run here, and go on from what is there")
    parser.add_argument("--out", type=Path, default=Path(m6rec.__file__).parent / "foundation")
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            work = words.work or Path(temporary)
            ship(pretrain(work, words.words), words.out, words.words)
    except M6RecError as error:
        sys.exit(f"error: {error}")


def pretrain(work: Path, words: list[str]) -> Path:
    """Return the folder of the finished run."""
    if not (work / "data" / "dataset.yaml").is_file():
        prepare(World(WORLD), work / "data", PrepareConfig())
    run = work / "run"
    _, result = train_run(read_recipe("foundation", [f"data={work / 'data'}", f"out={run}", *words]), resume=True)
    if result.interrupted:
        raise SystemExit(130)
    return run


def ship(run: Path, out: Path, words: list[str]) -> None:
    """Write the run's model in bfloat16, and its card."""
    experiment, card = open_experiment(run), read_card(run)
    figures = {split: experiment.task.measure(experiment.backbone, split, MEASURED) for split in ("valid", "test")}
    kept = {path.name: path.read_bytes() for path in out.glob("*.py")}
    save_backbone(resolve_backbone(run / MODEL_FOLDER), out, torch.bfloat16)
    (out / "generation_config.json").unlink(missing_ok=True)
    hashes = {path.name: file_hash(path) for path in sorted(out.iterdir())}
    size = sum(path.stat().st_size for path in out.iterdir())
    recipe = plain(experiment.recipe) | {"data": "world", "out": "RUN"}
    told = {
        "name": "m6rec foundation",
        "description": "A small language model of a made-up shop and video site, for demos, tests and offline use.",
        "licence": "Apache-2.0 (all of its text is made by m6rec)",
        "command": " ".join(["python scripts/foundation.py", *words]),
        "parameters": sum(parameter.numel() for parameter in experiment.backbone.parameters()),
        "bytes": size,
        "world": plain(WORLD),
        "data": experiment.dataset.manifest.card(),
        "held_out": "each user's last two events of items (leave-one-out), their reviews, a fifth of all dialogues",
        "cpu_seconds": card["cpu_seconds"],
        "steps": card["steps"],
        "figures": figures,
        "recipe": recipe,
        "versions": versions(),
        "sha256": hashes,
    }
    (out / CARD_FILE).write_text(json.dumps(told, indent=1), encoding="utf-8")
    for name, content in kept.items():
        (out / name).write_bytes(content)
    if size > LIMIT_BYTES:
        raise SystemExit(f"got {size:,} bytes in {out}, expected at most {LIMIT_BYTES:,}: make the model smaller")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
