"""Immutable versions and movable aliases on a file system: the only contract between learner and servers."""
