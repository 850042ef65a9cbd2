"""Data cards: a YAML head that ``datasets`` reads, and a page in markdown, with everything of others' making quoted."""

import importlib.metadata
import json
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 400  # characters of one value in a table
_PLAIN = re.compile(r"[^A-Za-z0-9 .,;/=+%-]")


def data_card(
    title: str,
    intro: str,
    facts: Mapping[str, Any],
    sections: Sequence[tuple[str, str]],
    configs: Mapping[str, str],
    tags: Sequence[str],
) -> str:
    """The text of a ``README.md``.

    Args:
        title, sections: headings and markdown of our own making.
        intro: markdown of our own making, with quoted values.
        facts: what a table says; values are quoted here.
        configs: name of each configuration and the pattern of its data files; the first is the default.
    """
    import yaml

    head = {
        "tags": ["hfdataopt", *tags],
        "configs": [
            {"config_name": name, **({"default": True} if place == 0 else {}), "data_files": pattern}
            for place, (name, pattern) in enumerate(configs.items())
        ],
    }
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=False).strip(),
        "---",
        "",
        f"# {title}",
        "",
        intro,
    ]
    lines += ["", "| | |", "|---|---|", *(f"| {quoted(name)} | {quoted(value)} |" for name, value in facts.items())]
    for heading, text in sections:
        lines += ["", f"## {heading}", "", text]
    return "\n".join(lines) + "\n"


def quoted(value: Any) -> str:
    """A value as it is shown in one line of markdown: whatever could be markup is a character reference."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = textwrap.shorten("".join(c if c.isprintable() else " " for c in text), SHOWN, placeholder=" ...")
    return _PLAIN.sub(lambda found: f"&#{ord(found.group())};", text)


def versions() -> dict[str, str]:
    """Versions of what the numbers were made with."""
    names = ("hfdataopt", "torch", "transformers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
