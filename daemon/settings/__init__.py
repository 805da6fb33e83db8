"""How files of settings are read: units that operators write, and strict YAML with every fault at once."""
