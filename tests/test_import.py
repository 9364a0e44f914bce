"""What an import and a help page may cost: no torch."""

import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "peft", "accelerate", "datasets", "pandas", "matplotlib", "faiss", "implicit"]
HELP = """
import sys
sys.argv = ["m6rec", {}]
try:
    {}
except SystemExit as end:
    assert not end.code
"""


def loaded(code):
    """Run ``code`` in a new interpreter and return which heavy packages it has loaded."""
    tell = f"import sys; print('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, text=True, check=True)
    return done.stdout.rpartition("LOADED")[2].split()


@pytest.mark.parametrize(
    "code",
    [
        "import m6rec; m6rec.__version__; m6rec.M6RecError; dir(m6rec)",
        "import m6rec.cli",
        "from m6rec.tasks import TASKS; from m6rec.tuners import TUNERS; list(TASKS), list(TUNERS)",
        "import m6rec.data.prepare, m6rec.data.store, m6rec.data.sources.world",
        "import runpy" + HELP.format("'--help'", "runpy.run_module('m6rec', run_name='__main__')"),
        "from m6rec.cli import main" + HELP.format("'train', '--help'", "main()"),
    ],
)
def test_nothing_heavy_is_loaded(code):
    assert loaded(code) == []


def test_the_probe_sees_what_is_loaded():
    assert "torch" in loaded("import m6rec.api")
