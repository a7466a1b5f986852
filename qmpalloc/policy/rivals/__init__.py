"""Rules that other systems use, written from what is published of them, to be compared with in the same run."""
