"""relearnd keeps a served model fresh."""
