"""A set of places that grows in any order: one bit for each position up to the last one, whatever lies between."""

from collections.abc import Iterator

_PAGE_BITS = 16
_PAGE = 1 << _PAGE_BITS
_FULL = b"\xff" * (_PAGE // 8)
_EMPTY = bytes(_PAGE // 8)


class Places:
    """Which places there are, in pages of 65,536: 8 KiB for each page that is neither empty nor full."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray | bytes] = {}

    def add(self, place: int) -> None:
        """Add one place."""
        number, bit = place >> _PAGE_BITS, place & _PAGE - 1
        page = self._pages.get(number, _EMPTY)
        if not isinstance(page, bytearray):
            if page is _FULL:
                return
            page = self._pages[number] = bytearray(page)
        page[bit >> 3] |= 1 << (bit & 7)

    def add_range(self, first: int, end: int) -> None:
        """Add the places from `first` up to, not including, `end`."""
        while first < end:
            stop = min(end, (first | _PAGE - 1) + 1)
            if stop - first == _PAGE:
                self._pages[first >> _PAGE_BITS] = _FULL
            else:
                for place in range(first, stop):
                    self.add(place)
            first = stop

    def __contains__(self, place: int) -> bool:
        page = self._pages.get(place >> _PAGE_BITS, _EMPTY)
        return bool(page[(place & _PAGE - 1) >> 3] >> (place & 7) & 1)

    def ranges(self, first: int, end: int, *, absent: bool = False) -> Iterator[tuple[int, int]]:
        """The ranges of places between two places that are in the set; those that are not, if `absent`."""
        begun: int | None = None
        for place, is_in in self._runs(first, end):
            if is_in == absent:
                if begun is not None:
                    yield begun, place
                begun = None
            elif begun is None:
                begun = place
        if begun is not None:
            yield begun, end

    def _runs(self, first: int, end: int) -> Iterator[tuple[int, bool]]:
        """Where a run of equal bits may begin, and whether it is of places in the set."""
        place = first
        while place < end:
            page = self._pages.get(place >> _PAGE_BITS, _EMPTY)
            bit = place & _PAGE - 1
            if page is _EMPTY or page is _FULL:
                length = _PAGE - bit
            elif not bit & 7 and page[bit >> 3] in {0, 255}:
                length = 8
            else:
                length = 1
            yield place, bool(page[bit >> 3] >> (bit & 7) & 1)
            place += length
