"""Disks that are full at a chosen byte, and what lies on them before and after."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TMPFS_BYTES = 64 << 20
_NOBODY = 65534
_MOMENT_S = 5.0


def tree(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too, by their hash; of folders, that they are there.

    Looks again where a service deletes a file in the meantime.
    """
    while True:
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(folder.rglob("*")):
                content = path.read_bytes() if path.is_file() else None
                found[str(path.relative_to(folder))] = "" if content is None else hashlib.sha256(content).hexdigest()
            return found


@contextmanager
def unchanged(*folders: Path) -> Iterator[None]:
    """Asserts that what is done in the block leaves every file as it was, and no new one.

    A service deletes what it has sent when it is sent, which may be a moment after it has come.
    """
    before = [tree(folder) for folder in folders]
    yield
    deadline = time.monotonic() + _MOMENT_S
    while (after := [tree(folder) for folder in folders]) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert after == before


class LimitedFiles:
    """Any folder: the system refuses to let a file grow beyond a size, in this process and those it starts.

    Every Linux and macOS has it, for every user, in every container.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def full_after(self, num_bytes: int) -> Iterator[None]:
        """Files that are written in the block break off after so many bytes."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class SmallDisk:
    """A file system of its own in memory, of which a ballast leaves so much free as is wanted."""

    def __init__(self, path: Path) -> None:
        self.path = path / "disk"
        self._ballast = path / "disk" / ".ballast"

    @contextmanager
    def full_after(self, num_bytes: int) -> Iterator[None]:
        """What is written in the block finds so much room, to a page, and no more."""
        self.fill(num_bytes)
        try:
            yield
        finally:
            self.make_room()

    def fill(self, left_bytes: int = 0) -> None:
        """Leaves so much free; nothing at all also while others write."""
        status = os.statvfs(self.path)
        size = status.f_bavail * status.f_frsize - (left_bytes + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
        with self._ballast.open("wb", buffering=0) as file:
            if left_bytes:
                os.posix_fallocate(file.fileno(), 0, max(1, size))
                return
            with contextlib.suppress(OSError):  # The disk is full.
                while file.write(bytes(1 << 20)):
                    pass

    def make_room(self) -> None:
        self._ballast.unlink()


@contextmanager
def mounted(path: Path) -> Iterator[Path]:
    """Mounts a small file system at a folder that is made for it.

    Raises:
        subprocess.CalledProcessError: This process may not.
    """
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}"]
    subprocess.run(["mount", *options, "tmpfs", str(path)], check=True, capture_output=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@cache
def may_mount() -> bool:
    """Whether this process may mount file systems, as root may, but for root in most containers."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder) / "disk"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


KINDS = ["limit on files", "file system"] if may_mount() else ["limit on files"]
"""Of full disks that there are here; the first is everywhere."""


@contextmanager
def disk(kind: str, folder: Path) -> Iterator[LimitedFiles | SmallDisk]:
    """A disk of that kind."""
    if kind == "limit on files":
        yield LimitedFiles(folder)
        return
    small = SmallDisk(folder)
    with mounted(small.path):
        yield small


READ_ONLY_KINDS = ["rights", "file system"] if may_mount() else ["rights"]


@contextmanager
def read_only(kind: str, folder: Path) -> Iterator[None]:
    """Makes a folder and what is in it something that can be read and not written, in the block.

    Args:
        kind: Of `READ_ONLY_KINDS`. For `rights`, root becomes nobody, whom rights bind, so that all folders above must
            be open to others; for `file system`, the folder must be `mounted`.
        folder: The folder.
    """
    if kind == "file system":
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        return
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
