"""Disks that fill up or turn read-only, for the tests of the file adapters."""

import contextlib
import errno
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(size: str = "4m") -> Iterator[Path]:
    """The folder of a file system of its own, in memory; skips where mounting is not allowed.

    Not under pytest's folders: a mount that a killed run leaves behind would keep later runs from clearing them.
    """
    folder = Path(tempfile.mkdtemp(prefix="croupier-disk-"))
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    try:
        if made.returncode:
            pytest.skip(f"a disk of its own takes the right to mount: {made.stderr.decode().strip()}")
        yield folder
    finally:
        if not made.returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)  # lazy: a failed test may hold files open
        folder.rmdir()


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """No byte is left on the disk of `folder` meanwhile."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    yield
    filler.unlink()


@contextlib.contextmanager
def write_limit(size: int) -> Iterator[None]:
    """No file can be written beyond `size` bytes meanwhile: a full disk for those who may not mount one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only_after(folder: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """A folder in which nothing can be written any more, after `write(folder)`.

    Root may write anywhere but on a read-only file system, others are stopped by the folder's mode.
    """
    if os.geteuid() != 0:
        write(folder)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    with small_disk() as disk:
        write(disk)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        yield disk


@pytest.fixture(params=["disk", "limit"])
def full_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Callable]]:
    """A folder, and a context manager in which nothing more can be written to the files given."""
    if request.param == "limit":
        yield tmp_path, lambda file: write_limit(os.path.getsize(f"{file}-wal"))
        return
    with small_disk() as folder:
        yield folder, lambda file: filled(file.parent)
