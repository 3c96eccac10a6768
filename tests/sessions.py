"""What runs in a session of the system's, as a test's own processes do."""

from contextlib import suppress
from pathlib import Path


def members(session: int) -> list[str]:
    """Processes of a session by their names, dead ones that nobody has waited for left out."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):  # it ended meanwhile
            head, _, rest = (folder / "stat").read_text().rpartition(")")
            state, _, _, its_session = rest.split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(head.partition("(")[2])
    return found
