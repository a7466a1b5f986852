"""What no policy may overrule: limits, signs of danger, and the order in which memory moves. Pure: no await, no I/O."""
