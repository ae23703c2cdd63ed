"""Checks of the zip file that `torch.save` writes, before torch maps it.

torch believes the headers of such a file. If a part is compressed, or shorter than its header says, torch maps whatever
bytes are at that place as tensors. And a pickle may unpack to more than the memory holds.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

MAX_PICKLE_BYTES = 1 << 20
"""Maximum size of the list of tensors, enough for some six thousand; SHARP has 1,500."""

_LOCAL_HEADER_BYTES = 30


def check(path: Path) -> Counter[int]:
    """Check that the parts of the file are stored uncompressed, one after the other.

    Returns:
        Number of parts with a tensor's memory, by their size in bytes.

    Raises:
        ValueError: A part is compressed, overlaps another one or ends too early.
        OSError: The file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts, end_of_parts = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size:
            raise ValueError("a part of it is compressed")
        if part.filename.endswith("/data.pkl") and part.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its list of tensors has {part.file_size} bytes and the limit is {MAX_PICKLE_BYTES}")
    # The directory may list the parts in any order, but in the file they must not overlap.
    parts.sort(key=lambda part: part.header_offset)
    starts = [*(part.header_offset for part in parts), end_of_parts]
    with path.open("rb") as file:
        for part, (start, next_start) in zip(parts, itertools.pairwise(starts), strict=True):
            file.seek(start)
            header = file.read(_LOCAL_HEADER_BYTES)
            if len(header) < _LOCAL_HEADER_BYTES:
                raise ValueError("a part of it begins after its end")
            # Bytes 26 to 29 of a local header have the lengths of a name and of an extra field, which precede the
            # content. torch finds a tensor by the same sum.
            end = start + _LOCAL_HEADER_BYTES + sum(struct.unpack_from("<HH", header, 26)) + part.file_size
            file.seek(end)
            # The next part, the directory, and the descriptor that some writers append to a part all begin with PK.
            if end > next_start or file.read(2) != b"PK":
                raise ValueError("a part of it is not as long as it says")
    return Counter(part.file_size for part in parts if "/data/" in part.filename)


def check_storages(tensors: Iterable[Tensor], sizes: Counter[int]) -> None:
    """Check that the memory of each mapped tensor is a whole part of the file.

    Args:
        tensors: Tensors that torch mapped from the file.
        sizes: Result of `check`.

    Raises:
        ValueError: A tensor is shorter or longer than any part that is left for it.
    """
    # Tensors that share memory count once.
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    # torch does not return the part that a tensor came from, so it is only checked that no length occurs more often
    # than in the file. Empty tensors have no memory.
    mapped = Counter(storages.values())
    if any(num > sizes[num_bytes] for num_bytes, num in mapped.items() if num_bytes):
        raise ValueError("a tensor has another length than its part of the file")
