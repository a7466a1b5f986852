"""What can go wrong, at random: a controller among broken guests, and bytes that nobody should send."""
