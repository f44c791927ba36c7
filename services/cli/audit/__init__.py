"""`turnlog audit`: whether memory and usage hold what the log says, and nothing else."""
