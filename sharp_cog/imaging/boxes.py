"""The boxes of HEIC and AVIF files: properties of the main image that decoders do not report, and repairs.

Boxes are those of ISO/IEC 14496-12 (ISO base media file format) and ISO/IEC 23008-12 (HEIF): four bytes of length, four
of type, then the content. The box `meta` says which item is the main image, and which properties belong to it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

_MAX_BOXES = 10_000
"""Maximum number of boxes or entries in one box; files of cameras have some hundred at most."""

_UUIDS = {
    bytes.fromhex("22cc04c7d6d94e079d904eb6ecbaf3a3"): b"cmin",
    bytes.fromhex("4363e9145b7d4aab97aebea69803b434"): b"cmex",
}
"""Kinds of properties that Apple's spatial photographs store as user-defined boxes, with the same content."""

_FULL_BOX_BYTES = 4
"""Length of the version and flags with which some boxes begin."""


_HAS_X, _HAS_ROTATION = 1, 8
"""Flags of the property `cmex`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """One box.

    Attributes:
        kind: Four letters.
        content: Content without the header.
    """

    kind: bytes
    content: bytes

    def encoded(self) -> bytes:
        return struct.pack(">I", len(self.content) + 8) + self.kind + self.content


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """The parts of a HEIC or AVIF that describe its items.

    Attributes:
        primary_item: Number of the main image.
        properties: All properties, in the order of the file.
        associations: Places in `properties` of each item's own, in the order in which they apply.
        kinds: Type of each item, such as `hvc1`, `av01` or `grid`.
    """

    primary_item: int
    properties: tuple[Box, ...]
    associations: dict[int, list[int]] = field(default_factory=dict)
    kinds: dict[int, bytes] = field(default_factory=dict)

    def find(self, kind: bytes, item: int | None = None) -> bytes | None:
        """Return the content of an item's first property of a kind, by default of the main image; None if absent."""
        places = self.associations.get(self.primary_item if item is None else item, [])
        found = (self.properties[place] for place in places if place < len(self.properties))
        return next((each.content for each in found if each.kind == kind), None)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the main image as it is coded, before it is cropped and turned; None if unknown."""
        content = self.find(b"ispe")
        return None if content is None or len(content) < 12 else struct.unpack_from(">II", content, 4)

    @property
    def turns(self) -> list[tuple[bytes, bytes]]:
        """Kind (`irot` or `imir`) and content of the turns of the main image, in the order in which they apply."""
        places = self.associations.get(self.primary_item, [])
        boxes = [self.properties[place] for place in places if place < len(self.properties)]
        return [(box.kind, box.content) for box in boxes if box.kind in (b"irot", b"imir") and box.content]

    def position_m(self, item: int) -> float | None:
        """Return the position of an item's camera along its image's rows, in metres; None if it has none.

        The property `cmex` holds it in micrometres. A camera that is rotated too has no position along its rows.
        """
        content = self.find(b"cmex", item)
        if content is None or len(content) < 4:
            return None
        flags = int.from_bytes(content[1:4], "big")
        if flags & _HAS_ROTATION:
            return None
        if not flags & _HAS_X:
            return 0.0
        return float(struct.unpack_from(">i", content, 4)[0]) * 1e-6 if len(content) >= 8 else None

    @property
    def is_turned(self) -> bool:
        """Whether the file says how to turn the main image."""
        return self.find(b"irot") is not None or self.find(b"imir") is not None

    @property
    def coding(self) -> tuple[int, int] | None:
        """Colour primaries and transfer characteristics of the main image, by ITU-T H.273; None if unknown."""
        places = self.associations.get(self.primary_item, [])
        for place in places:
            content = self.properties[place].content if place < len(self.properties) else b""
            if content.startswith(b"nclx") and len(content) >= 10 and self.properties[place].kind == b"colr":
                return struct.unpack_from(">HH", content, 4)
        return None

    @property
    def focal_length_px(self) -> float | None:
        """Horizontal focal length in pixels by the camera matrix of the main image; None if it has none.

        The property `cmin` holds the matrix for an image of width and height 1, as fixed-point numbers. Cropping and
        turning keep the length of a pixel.
        """
        content = self.find(b"cmin")
        if content is None or len(content) < 16 or self.size is None:
            return None
        flags = int.from_bytes(content[1:4], "big")
        denominator = 1 << ((flags & 0x1F00) >> 8)
        focal_length = struct.unpack_from(">i", content, 4)[0] / denominator
        return focal_length * self.size[0] if focal_length > 0 else None

    @property
    def crop(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of the part of the main image that is shown, by `clap`; None for all of it.

        Before anything is turned. The property holds width and height, and how far the centre lies from the middle, as
        fractions (ISO/IEC 14496-12, 12.1.4).
        """
        content, size = self.find(b"clap"), self.size
        if content is None or len(content) < 32 or size is None:
            return None
        numbers = struct.unpack_from(">IIIIiIiI", content)
        if not all(numbers[1::2]):
            return None
        width, height, right, down = (number / per for number, per in zip(numbers[::2], numbers[1::2], strict=True))
        left, top = right + (size[0] - width) / 2, down + (size[1] - height) / 2
        box = (round(left), round(top), round(left + width), round(top + height))
        is_inside = 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]
        return box if is_inside and box != (0, 0, *size) else None


def read_container(content: bytes) -> Container | None:
    """Read the description of the items; None if the file has none that can be read."""
    try:
        meta = next(box.content for box in _boxes(content) if box.kind == b"meta")
        inner = {box.kind: box.content for box in _boxes(meta[_FULL_BOX_BYTES:])}
        version = inner[b"pitm"][0]
        primary_item = struct.unpack_from(">I" if version else ">H", inner[b"pitm"], 4)[0]
        parts = list(_boxes(inner[b"iprp"]))
        properties = next((box.content for box in parts if box.kind == b"ipco"), b"")
        associations: dict[int, list[int]] = {}
        for box in parts:
            if box.kind == b"ipma":
                associations |= _read_associations(box.content)
        kinds = _read_kinds(inner.get(b"iinf", b""))
    except (StopIteration, LookupError, struct.error, ValueError):
        return None
    return Container(
        primary_item=primary_item,
        properties=tuple(_named(box) for box in _boxes(properties)),
        associations=associations,
        kinds=kinds,
    )


def _named(box: Box) -> Box:
    """Return a box of a user-defined kind that is known as one of that kind; any other box as it is."""
    kind = _UUIDS.get(box.content[:16]) if box.kind == b"uuid" else None
    return box if kind is None else Box(kind=kind, content=box.content[16:])


def repair_avif(content: bytes) -> bytes | None:
    """Return an AVIF that is like another one, but keeps two rules without which libavif refuses to read it.

    The first brand is `avif`, and each coded image has a size: one that lacks it, such as the image of the
    transparency, takes that of the main image. The description of the items is written anew behind the end of the file,
    and what was there becomes free space, so that all other places in the file stay where they were.

    Returns:
        The repaired file; None if there is nothing to repair.
    """
    container = read_container(content)
    if container is None or b"av01" not in container.kinds.values():
        return None
    size = next(
        (
            place
            for place in container.associations.get(container.primary_item, [])
            if place < len(container.properties) and container.properties[place].kind == b"ispe"
        ),
        None,
    )
    lacking = {
        item for item, kind in container.kinds.items() if kind == b"av01" and container.find(b"ispe", item) is None
    }
    has_brand = content[8:12] in (b"avif", b"avis")
    if size is None or not (lacking or not has_brand):
        return None
    start, end = next((start, end) for kind, start, end in _places(content) if kind == b"meta")
    meta = content[start + 8 : end]
    inner = [_with_sizes(box, lacking, size) for box in _boxes(meta[_FULL_BOX_BYTES:])]
    written = Box(kind=b"meta", content=meta[:_FULL_BOX_BYTES] + b"".join(box.encoded() for box in inner)).encoded()
    head = content[:8] + b"avif" + content[12 : start + 4] + b"free"
    return head + content[start + 8 :] + written


def _with_sizes(box: Box, items: set[int], size: int) -> Box:
    """Return a box `iprp` in which items have one more property; all other boxes stay as they are."""
    if box.kind != b"iprp":
        return box
    parts = list(_boxes(box.content))
    for index, part in enumerate(parts):
        if part.kind == b"ipma":
            parts[index] = replace(part, content=_add_association(part.content, items, size))
    return replace(box, content=b"".join(part.encoded() for part in parts))


def _places(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the boxes that follow one another; a box without a length goes to the end."""
    position = 0
    for _ in range(_MAX_BOXES):
        if position + 8 > len(content):
            return
        length, kind = struct.unpack_from(">I4s", content, position)
        if length == 1:
            # Only the pixels of huge files are that long. Their box is passed over, and never read.
            (length,) = struct.unpack_from(">Q", content, position + 8)
        length = length or len(content) - position
        if length < 8 or position + length > len(content):
            return
        yield kind, position, position + length
        position += length


def _boxes(content: bytes) -> Iterator[Box]:
    for kind, start, end in _places(content):
        yield Box(kind=kind, content=content[start + 8 : end] if kind != b"mdat" else b"")


def _read_kinds(content: bytes) -> dict[int, bytes]:
    """Read the types of items from a box `iinf`."""
    if not content:
        return {}
    kinds: dict[int, bytes] = {}
    for box in _boxes(content[8 if content[0] else 6 :]):
        if box.kind == b"infe" and box.content[0] in (2, 3):
            is_long = box.content[0] == 3
            (item,) = struct.unpack_from(">I" if is_long else ">H", box.content, 4)
            start = 10 if is_long else 8
            kinds[item] = box.content[start : start + 4]
    return kinds


def _entries(content: bytes) -> Iterator[tuple[int, int, int, list[int]]]:
    """Yield item, start and end of each entry of a box `ipma`, and its associations as they are written."""
    version, flags = content[0], int.from_bytes(content[1:4], "big")
    (count,) = struct.unpack_from(">I", content, 4)
    if count > _MAX_BOXES:
        raise ValueError(f"it has {count} entries")
    position = 8
    for _ in range(count):
        start = position
        (item,) = struct.unpack_from(">I" if version else ">H", content, position)
        position += 4 if version else 2
        number = content[position]
        associations = struct.unpack_from(f">{number}{'H' if flags & 1 else 'B'}", content, position + 1)
        position += 1 + number * (2 if flags & 1 else 1)
        yield item, start, position, list(associations)


def _read_associations(content: bytes) -> dict[int, list[int]]:
    """Read the places of properties by item from a box `ipma`."""
    mask = 0x7FFF if content[3] & 1 else 0x7F
    return {
        item: [(each & mask) - 1 for each in associations if each & mask]
        for item, _, _, associations in _entries(content)
    }


def _add_association(content: bytes, items: set[int], place: int) -> bytes:
    """Return the content of a box `ipma` with one more property for some items."""
    number = 2 if content[3] & 1 else 1
    parts = [content[:8]]
    for item, start, end, associations in _entries(content):
        entry = content[start:end]
        if item in items:
            count_at = len(entry) - len(associations) * number - 1
            added = (place + 1).to_bytes(number, "big")
            entry = entry[:count_at] + bytes((len(associations) + 1,)) + added + entry[count_at + 1 :]
        parts.append(entry)
    return b"".join(parts)
