"""A run seen, and steered, from other processes: its events for who attaches, its state at once, requests of people.

Two Unix sockets of mode 600 lie beside the lock of a run. What comes out of the one for **status** is the record's
stream (JSON lines, the header first), begun by as much of what has happened as shows the run as it is. Who attaches
sends nothing. The one for **requests** takes a line and answers with a line.
"""
