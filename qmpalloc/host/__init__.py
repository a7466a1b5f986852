"""What this host is, and how much memory it has left."""
