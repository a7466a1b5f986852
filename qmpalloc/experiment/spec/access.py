"""Access distributions: which page of its file a load reads next. Shares are of the file, from 0 to 1."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from qmpalloc.config.keys import FLAT, Found, bounds


class _Distribution(Struct, frozen=True, kw_only=True, tag_field="distribution"):
    """Base of all distributions; the tag is the name in TOML."""


class Normal(_Distribution, frozen=True, kw_only=True, tag="normal"):
    """Normal around the middle of the file; what falls outside the file is drawn again, so every page can come.

    Attributes:
        deviation: Standard deviation before truncation, as a share of the file. The default leaves no part of the
            file unread for long, so that two loads contend for a budget as large as their files.
    """

    deviation: Annotated[float, bounds("it is a share of the file, e.g. 0.3", gt=0, le=1)] = 0.3


class Zipf(_Distribution, frozen=True, kw_only=True, tag="zipf"):
    """Zipf: the page of rank k is read in proportion to k ** -exponent. Page 0 has rank 1, page 1 rank 2, and so on.

    Attributes:
        exponent: Above 0; larger is more skewed.
    """

    exponent: Annotated[float, bounds("web and file loads have about 0.7 to 1", gt=0, le=5)] = 1.0


class HotCold(_Distribution, frozen=True, kw_only=True, tag="hotcold"):
    """A hot part at the start of the file and a cold rest, uniform within each.

    Attributes:
        hot: Share of the file that is hot.
        hot_reads: Share of the reads that go there.
    """

    hot: Annotated[float, bounds("the share of the file that is hot, e.g. 0.2", gt=0, lt=1)] = 0.2
    hot_reads: Annotated[float, bounds("the share of reads that are hot, e.g. 0.8", ge=0, le=1)] = 0.8


class Uniform(_Distribution, frozen=True, kw_only=True, tag="uniform"):
    """Every page alike."""


class Sequential(_Distribution, frozen=True, kw_only=True, tag="sequential"):
    """From the first page to the last, and then from the first again."""


class Loop(_Distribution, frozen=True, kw_only=True, tag="loop"):
    """A scan that repeats one contiguous part of the file.

    Attributes:
        share: Length of the part.
        start: Where it begins.
    """

    share: Annotated[float, bounds("the share of the file that is scanned", gt=0, le=1)]
    start: Annotated[float, bounds("it is a share of the file", ge=0)] = 0.0

    def mistakes(self) -> Found:
        """Yield what no file has."""
        if self.start > 1 - self.share + 1e-9:
            message = f"from {self.start:g}, a share of {self.share:g} ends outside the file"
            yield "start", message, "lower start or share"


SimpleAccess = Normal | Zipf | HotCold | Uniform | Sequential | Loop


class Part(Struct, frozen=True, kw_only=True):
    """One part of a mixture.

    Attributes:
        weight: Its share of the reads, relative to the other parts.
        access: Which pages it reads.
    """

    weight: Annotated[float, bounds("leave the part out instead", gt=0)]
    access: Annotated[SimpleAccess, FLAT]


class Mixture(_Distribution, frozen=True, kw_only=True, tag="mixture"):
    """Each read comes from one of the parts, chosen at random by weight; scans go on where they were.

    Attributes:
        parts: One at least.
    """

    parts: tuple[Part, ...]


Access = SimpleAccess | Mixture
