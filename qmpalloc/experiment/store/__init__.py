"""What runs leave on disk: the directory of an experiment and the files in it. Pure."""
