"""`python -m daemon` is `relearnd`."""

from daemon.cli import main

main()
