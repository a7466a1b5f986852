"""Policy ``curve``: what is believed of each guest, the best split by it, and whether that is worth a move."""
