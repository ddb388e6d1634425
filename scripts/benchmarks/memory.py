"""What a process holds of memory, as the system tells."""

from pathlib import Path


def resident_memory() -> int:
    """Bytes of resident memory of this process; 0 where the system does not tell."""
    return _told("VmRSS")


def own_memory() -> int:
    """Those of them that are no files mapped into memory; 0 where the system does not tell."""
    return _told("RssAnon")


def _told(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
