"""``python -m m6rec`` and the ``m6rec`` command."""

from m6rec.cli import main

if __name__ == "__main__":
    main()
