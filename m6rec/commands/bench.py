"""The command that makes a claimed figure again: hands its words to the checkout's script. Knows no bench."""

import subprocess
import sys
from pathlib import Path

import typer

from m6rec.errors import ConfigError

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"
app = typer.Typer(rich_markup_mode=None)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench(context: typer.Context) -> None:
    """Make a figure of BENCHMARKS.md again: m6rec bench frontier --data DIR --json FILE (a picture goes beside it)."""
    if not SCRIPT.is_file():
        raise ConfigError(
            f"got no {SCRIPT}, expected a checkout of the repository: the installed package has no benches; "
            "clone it and call m6rec bench, or python scripts/bench.py, there"
        )
    # A process of its own: a bench reads its own CPU time, and sets threads for itself alone.
    raise typer.Exit(subprocess.run([sys.executable, str(SCRIPT), *context.args], check=False).returncode)
