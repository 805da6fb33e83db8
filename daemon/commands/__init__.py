"""What an operator types, a module for each noun; `daemon.cli` puts them together."""
