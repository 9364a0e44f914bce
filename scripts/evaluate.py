"""Evaluate a run: the same as `m6rec evaluate`.

python scripts/evaluate.py RUN --split test --baselines popularity,itemknn,sasrec --json FILE
"""

import sys

from m6rec.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
