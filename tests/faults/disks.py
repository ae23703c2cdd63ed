"""Disks that are full after a chosen number of bytes, and comparisons of their content."""

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
    """Return the hash of each file below a folder, hidden ones included, and an empty text for each folder.

    If a service deletes a file meanwhile, the folder is read again.
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
    """Assert that the block changes no file and leaves no new one.

    A service may delete a file a moment after the client has received it, so the check waits for that.
    """
    before = [tree(folder) for folder in folders]
    yield
    deadline = time.monotonic() + _MOMENT_S
    while (after := [tree(folder) for folder in folders]) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert after == before


class LimitedFiles:
    """A folder in which this process and its children cannot let a file grow beyond a size.

    Linux and macOS offer this limit to every user, in every container.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def full_after(self, num_bytes: int) -> Iterator[None]:
        """Refuse to write more than `num_bytes` to a file in the block."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class SmallDisk:
    """A file system in memory, which a ballast file fills up to a chosen free space."""

    def __init__(self, path: Path) -> None:
        self.path = path / "disk"
        self._ballast = path / "disk" / ".ballast"

    @contextmanager
    def full_after(self, num_bytes: int) -> Iterator[None]:
        """Leave `num_bytes` free in the block, rounded up to a page."""
        self.fill(num_bytes)
        try:
            yield
        finally:
            self.make_room()

    def fill(self, left_bytes: int = 0) -> None:
        """Leave `left_bytes` free; for 0, fill the disk even while other threads write."""
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
    """Create a folder and mount a small file system there.

    Raises:
        subprocess.CalledProcessError: This process may not mount file systems.
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
    """Report whether this process may mount file systems. Root may, except in most containers."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder) / "disk"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


KINDS = ["limit on files", "file system"] if may_mount() else ["limit on files"]
"""Kinds of full disks that this machine can simulate; the first one is available everywhere."""


@contextmanager
def disk(kind: str, folder: Path) -> Iterator[LimitedFiles | SmallDisk]:
    """Return a disk of a kind of `KINDS`."""
    if kind == "limit on files":
        yield LimitedFiles(folder)
        return
    small = SmallDisk(folder)
    with mounted(small.path):
        yield small


READ_ONLY_KINDS = ["permissions", "file system"] if may_mount() else ["permissions"]


@contextmanager
def read_only(kind: str, folder: Path) -> Iterator[None]:
    """Make a folder and its content read-only in the block.

    Args:
        kind: Kind of `READ_ONLY_KINDS`. For `permissions`, root becomes the user nobody, whom permissions bind, so all
            parent folders must be readable by everyone. For `file system`, the folder must be `mounted`.
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
