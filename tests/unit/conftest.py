import sys
from pathlib import Path

# The package directory of tests is no package; its helpers are imported by name.
sys.path.insert(0, str(Path(__file__).parent))
