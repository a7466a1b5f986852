"""Clients of QEMU's two sockets: the QMP monitor and the guest agent. Native to trio.

`open_monitor` and `open_agent` connect; `open_monitor_on` and `open_agent_on` take any `trio.abc.Stream`, such as a
memory stream in a test. Commands have no time limit of their own; `deadline` gives them one.
"""

from qmpalloc.qmp.actuator import Actuator, find_actuators
from qmpalloc.qmp.agent import Agent, open_agent, open_agent_on
from qmpalloc.qmp.agent_channel import NoiseAllowance
from qmpalloc.qmp.agent_files import FileTrouble, file_trouble
from qmpalloc.qmp.agent_relay import relay_agent
from qmpalloc.qmp.agent_types import AgentInfo, ExecResult
from qmpalloc.qmp.deadline import MANY_COMMANDS, deadline
from qmpalloc.qmp.monitor import Monitor, open_monitor, open_monitor_on
from qmpalloc.qmp.monitor_types import BalloonStats, BlockStats, VmStatus
from qmpalloc.qmp.subscriptions import MonitorEvent

__all__ = [
    "MANY_COMMANDS",
    "Actuator",
    "Agent",
    "AgentInfo",
    "BalloonStats",
    "BlockStats",
    "ExecResult",
    "FileTrouble",
    "Monitor",
    "MonitorEvent",
    "NoiseAllowance",
    "VmStatus",
    "deadline",
    "file_trouble",
    "find_actuators",
    "open_agent",
    "open_agent_on",
    "open_monitor",
    "open_monitor_on",
    "relay_agent",
]
