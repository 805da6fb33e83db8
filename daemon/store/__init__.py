"""Examples, offsets, runs and decisions in DuckDB; the only place with SQL."""
