"""What an experiment is: its file, its loads and their seeded references, and the order of its runs. Pure."""
