"""What --mode does, one file a mode: a config and a workdir in, files out. Also for notebooks."""
