"""A file system small enough to be filled. It takes root to mount one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEGABYTES = 320


@contextlib.contextmanager
def small_disk() -> Iterator[Path | None]:
    """Mount one in memory for the time of the block; None where that is not allowed."""
    if os.geteuid() != 0:
        yield None
        return
    place = Path(tempfile.mkdtemp(prefix="rj-disk-"))
    options = ["-t", "tmpfs", "-o", f"size={MEGABYTES}m,mode=755", "rj-chaos", str(place)]
    mounted = subprocess.run(["mount", *options], capture_output=True, timeout=30).returncode == 0
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=30)
        place.rmdir()


@contextlib.contextmanager
def filled(place: Path) -> Iterator[None]:
    """Not a byte is left on it for the time of the block."""
    ballast = place / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass
        yield
    finally:
        ballast.unlink()
