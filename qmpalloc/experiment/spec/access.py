"""Access distributions: which page of its file a load reads next. Shares are of the file, from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct


class _Distribution(Struct, frozen=True, kw_only=True, tag_field="distribution"):
    """Base of all distributions; the tag is the name in TOML."""


class Normal(_Distribution, frozen=True, kw_only=True, tag="normal"):
    """Normal around the middle of the file; what falls outside the file is drawn again, so every page can come.

    Attributes:
        deviation: Standard deviation before truncation, as a share of the file. The default leaves no part of the
            file unread for long, so that two loads contend for a budget as large as their files.
    """

    deviation: float = 0.3


class Zipf(_Distribution, frozen=True, kw_only=True, tag="zipf"):
    """Zipf: the page of rank k is read in proportion to k ** -exponent. Page 0 has rank 1, page 1 rank 2, and so on.

    Attributes:
        exponent: Above 0; larger is more skewed.
    """

    exponent: float = 1.0


class HotCold(_Distribution, frozen=True, kw_only=True, tag="hotcold"):
    """A hot part at the start of the file and a cold rest, uniform within each.

    Attributes:
        hot: Share of the file that is hot.
        hot_reads: Share of the reads that go there.
    """

    hot: float = 0.2
    hot_reads: float = 0.8


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

    share: float
    start: float = 0.0


SimpleAccess = Normal | Zipf | HotCold | Uniform | Sequential | Loop


class Part(Struct, frozen=True, kw_only=True):
    """One part of a mixture, chosen in proportion to `weight`."""

    weight: float
    access: SimpleAccess


class Mixture(_Distribution, frozen=True, kw_only=True, tag="mixture"):
    """Each read comes from one of the parts, chosen at random by weight; scans go on where they were."""

    parts: tuple[Part, ...]


Access = SimpleAccess | Mixture

SIMPLE: dict[str, type[SimpleAccess]] = {
    "normal": Normal,
    "zipf": Zipf,
    "hotcold": HotCold,
    "uniform": Uniform,
    "sequential": Sequential,
    "loop": Loop,
}
NAMES = (*SIMPLE, "mixture")


def mistakes(access: SimpleAccess) -> Iterator[tuple[str, str, str]]:
    """Yield key, message and hint of every parameter out of range."""
    match access:
        case Normal(deviation=share) if not 0 < share <= 1:
            yield "deviation", f"{share:g} is not above 0 and at most 1", "it is a share of the file, e.g. 0.3"
        case Zipf(exponent=exponent) if not 0 < exponent <= 5:
            yield "exponent", f"{exponent:g} is not above 0 and at most 5", "web and file loads have about 0.7 to 1"
        case HotCold(hot=hot, hot_reads=reads):
            if not 0 < hot < 1:
                yield "hot", f"{hot:g} is not between 0 and 1", "the share of the file that is hot, e.g. 0.2"
            if not 0 <= reads <= 1:
                yield "hot_reads", f"{reads:g} is not from 0 to 1", "the share of reads that are hot, e.g. 0.8"
        case Loop(share=share) if not 0 < share <= 1:
            yield "share", f"{share:g} is not above 0 and at most 1", "the share of the file that is scanned"
        case Loop(share=share, start=start) if not 0 <= start <= 1 - share + 1e-9:
            yield "start", f"from {start:g}, a share of {share:g} ends outside the file", "lower start or share"
        case _:
            pass
