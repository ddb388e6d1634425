"""Memory of this process, from /proc."""

from pathlib import Path


def resident_memory() -> int:
    """Return the resident memory in bytes; 0 if the system does not report it."""
    return _status_bytes("VmRSS")


def own_memory() -> int:
    """Return the resident memory without memory-mapped files, in bytes; 0 if the system does not report it."""
    return _status_bytes("RssAnon")


def _status_bytes(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
