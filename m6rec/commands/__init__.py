"""The commands, one file a family: words in, tables and JSON out. ``cli.py`` puts them together."""
