"""Names of models and datasets that can be no ids of the hub are not looked up there."""

import difflib
import os
import re
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def why_not_on_hub(name: str | os.PathLike[str]) -> str | None:
    """What is wrong with a name that is neither a path here nor on the hub, where that can be told without asking: a
    predicate ("does not exist ..."); None where it may be there.

    It is a path if it looks like one, or if its first part is a folder here that has no such entry.
    """
    text = os.fspath(name)
    path = Path(os.path.expanduser(text))  # which leaves the tilde of a user who is not there
    if not text.strip():
        return "is an empty name"
    try:
        if path.exists():
            return None
    except (OSError, ValueError):  # longer than a name can be
        return "is no name that a file can have"
    if (
        not text.startswith((".", "/", "~"))
        and _ID.fullmatch(text)
        and (path.parent == Path() or not path.parent.is_dir())
    ):
        return None
    there = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    if not path.parent.is_dir():
        return f"does not exist: there is no folder {str(path.parent)!r}"
    return "does not exist" + (f" (did you mean {str(path.parent / near[0])!r}?)" if near else "")
