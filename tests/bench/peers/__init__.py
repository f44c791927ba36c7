"""The peers, each a script with an environment of its own; what they do and say is in `harness`."""
