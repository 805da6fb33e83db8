"""The judgement: when to train, whether to promote. Pure functions over frozen facts; only `load.py` reads a file."""
