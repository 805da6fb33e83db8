"""What `make bench-serve` runs, each in an environment and a process of its own: nothing here imports relearnd."""
