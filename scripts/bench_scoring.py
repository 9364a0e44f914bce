"""Scoring 100 candidates by late interaction and without it: the same as `scripts/bench.py scoring`.

python scripts/bench_scoring.py --json runs/scoring.json [--data path/to/data] [--quick]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench import main

if __name__ == "__main__":
    sys.argv.insert(1, "scoring")
    main()
