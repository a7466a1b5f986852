"""The generator as it comes into a guest: one file that Python runs, a zip archive of the modules in ``generator/``."""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import ZipFile, ZipInfo

GENERATOR = Path(__file__).with_name("generator")
START = "import sys\n\nfrom generator.main import main\n\nsys.exit(main())\n"


def packed_generator() -> bytes:
    """Return the archive: not compressed, for what unpacks it need not be in the guest, and the same at any time."""
    packed = io.BytesIO()
    with ZipFile(packed, "w") as archive:
        archive.writestr(ZipInfo("__main__.py"), START)
        for module in sorted(GENERATOR.glob("*.py")):
            archive.writestr(ZipInfo(f"{GENERATOR.name}/{module.name}"), module.read_bytes())
    return packed.getvalue()
