"""Control of running guests: what is known of each, the connections to it, and the loop that moves memory.

`controller` is the loop, `guest` one guest's life, `size` its size, `session` its connections, `resizer` what is asked
of what moves its memory. `handle` is one guest in the hands of a script, without the loop. What a decision may not
do is in `qmpalloc.rules`.
"""
