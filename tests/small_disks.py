"""File systems with little room, where this user may mount them."""

import contextlib
import subprocess


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """A folder with so much room; yields what gives it 20 MB, or None where no disk can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run(
        [*mount, f"size={kilobytes}k", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        yield None
        return
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
