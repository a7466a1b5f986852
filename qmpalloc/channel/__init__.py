"""How commands are run in a guest: through its agent, or by a command of this host such as ssh.

Both do the same: run a program with its input to its end, start one and ask how it ended, put a file, get a file. What
installs, sets up or starts something in a guest knows `Channel` alone.
"""

from qmpalloc.channel.base import Channel
from qmpalloc.channel.command import CommandChannel, open_command
from qmpalloc.channel.opening import Written, open_channel, others
from qmpalloc.channel.passing import pass_through

__all__ = ["Channel", "CommandChannel", "Written", "open_channel", "open_command", "others", "pass_through"]
