"""Reads the headers of Parquet pages: the true unpacked size of a column, known before anything is unpacked.

A Parquet file's footer gives the sizes of its columns, but a manipulated footer may be wrong. Every page begins with a
header in Thrift's compact protocol whose second field is the unpacked size of the page. The pages are walked by these
headers.
Source: the Parquet format's `parquet.thrift` and the Thrift compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_HEADER_BYTES = 1 << 12  # read at once; a header with statistics of long texts may be larger
_MOST_HEADER_BYTES = 16 << 20
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_DEEPEST = 16
_DICTIONARY_PAGE = 2


class BadPage(ValueError):
    """The bytes are not a page header."""


class Page(NamedTuple):
    """Sizes of a page without its header, in bytes, and whether it holds a dictionary."""

    unpacked: int
    packed: int
    is_dictionary: bool


def page_sizes(file: BinaryIO, start: int, end: int) -> Iterator[Page]:
    """Every page between two offsets of a file.

    Raises:
        BadPage: a page header is damaged, or a page reaches beyond `end`.
    """
    while start < end:
        page, length = _page(file, start, end)
        if page.unpacked < 0 or page.packed < 0 or start + length + page.packed > end:
            raise BadPage(f"a page of {page.packed} bytes reaches beyond its column")
        yield page
        start += length + page.packed


def _page(file: BinaryIO, start: int, end: int) -> tuple[Page, int]:
    """The page at `start`, and the length of its header."""
    size = _HEADER_BYTES
    while True:
        file.seek(start)
        data = file.read(min(size, end - start))
        try:
            reader = _Compact(data)
            fields = dict(reader.integers())
            return Page(fields[2], fields[3], fields[1] == _DICTIONARY_PAGE), reader.position
        except IndexError as error:  # the header is longer than the bytes that were read
            if size >= min(_MOST_HEADER_BYTES, end - start):
                raise BadPage("a page header is cut short") from error
            size *= 16
        except KeyError as error:
            raise BadPage("a page header has no size") from error


class _Compact:
    """One struct of the compact protocol.

    Args:
        data: its bytes, possibly followed by other bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.position = data, 0

    def integers(self) -> Iterator[tuple[int, int]]:
        """(field, value) of the struct's own integers; everything else is skipped.

        Raises:
            IndexError: the struct is longer than the data.
            BadPage: the bytes are not such a struct.
        """
        number = 0
        while (head := self._byte()) != _STOP:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 0x0F
            if kind in (_I16, _I32, _I64):
                yield number, self._zigzag()
            else:
                self._skip(kind, 0)

    def _skip(self, kind: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise BadPage("a page header is nested too deeply")
        if kind in (_TRUE, _FALSE):
            return
        if kind in (_I16, _I32, _I64):
            self._zigzag()
        elif kind in (_BYTE, _DOUBLE, _BINARY):
            self._forward({_BYTE: 1, _DOUBLE: 8}.get(kind) or self._varint())
        elif kind in (_LIST, _SET):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            self._elements(count, [head & 0x0F], depth)
        elif kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            self._elements(count, [kinds >> 4, kinds & 0x0F], depth)
        elif kind == _STRUCT:
            while (head := self._byte()) != _STOP:
                if not head >> 4:
                    self._zigzag()
                self._skip(head & 0x0F, depth + 1)
        else:
            raise BadPage(f"a page header holds a value of kind {kind}")

    def _elements(self, count: int, kinds: list[int], depth: int) -> None:
        if count > len(self._data):
            raise BadPage("a page header holds a list that is too long")
        for _ in range(count):
            for kind in kinds:
                if kind in (_TRUE, _FALSE):  # in lists a Boolean takes one byte
                    self._forward(1)
                else:
                    self._skip(kind, depth + 1)

    def _forward(self, size: int) -> None:
        self.position += size
        if self.position > len(self._data):
            raise IndexError(self.position)

    def _byte(self) -> int:
        value = self._data[self.position]
        self.position += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise BadPage("a page header holds a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
