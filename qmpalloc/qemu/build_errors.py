"""Why a build failed, when that is a matter of what the user adds to the recipe. Pure: from mmdebstrap's output."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qmpalloc.errors import HostError, QmpallocError
from qmpalloc.qemu.host import NO_SPACE_HINT, is_full, last_lines
from qmpalloc.qemu.recipe import Variant

PREPARE_BEGINS = "qmpalloc: prepare begins"
PREPARE_FAILED = "qmpalloc: prepare failed: "
"""Lines of ``vm-images/additions.sh``."""

NO_PACKAGE = re.compile(
    r"E: (?:Unable to locate package (?P<name>\S+)|Package '(?P<candidate>[^']+)' has no installation candidate"
    r"|(?:Release|Version) '[^']*' for '(?P<released>[^']+)' was not found)"
)
"""What apt says of a package that an archive does not have."""


def translated(error: HostError, lines: Sequence[str], variant: Variant) -> QmpallocError:
    """Return the error of a failed build as the mistake that it comes from, or as it is.

    Args:
        error: Of mmdebstrap.
        lines: All it said.
        variant: What was to be built.
    """
    origin = variant.additions.origin
    # 1. The user's script failed. It may be the disk that is full, which its own lines then say.
    failed = next((line for line in lines if line.startswith(PREPARE_FAILED)), None)
    if failed is not None and PREPARE_BEGINS in lines:
        said = last_lines("\n".join(lines[lines.index(PREPARE_BEGINS) + 1 : lines.index(failed)])) or "    (nothing)"
        code = failed.removeprefix(PREPARE_FAILED)
        message = f"{variant.additions.prepare} failed (exit code {code}); its last lines:\n{said}"
        hint = NO_SPACE_HINT if is_full(said) else "it runs as root in the new system, where no service is started"
        return origin.error("prepare", message, hint=hint)
    # 2. A package does not exist.
    for match in filter(None, map(NO_PACKAGE.match, lines)):
        name = next(filter(None, match.groups()))
        kernel = name.replace("linux-headers-", "linux-image-") == variant.additions.kernel.partition("/")[0]
        if kernel or name in variant.packages:
            of = variant.additions.kernel.partition("/")[2] or variant.suite if kernel else variant.suite
            message = f"Debian {of} has no package {name!r}"
            return origin.error("kernel" if kernel else "packages", message, hint="apt-cache search finds names")
    return error
