"""The `turnlog` command: the composition root, the one package that may know every service."""
