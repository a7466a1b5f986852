"""Entry point: ``python3 DIRECTORY``, wherever the directory lies, or ``python3 -m guest_agent``."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from guest_agent.collector import main

sys.exit(main(sys.argv[1:]))
