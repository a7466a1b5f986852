"""Commands: one small module each."""
