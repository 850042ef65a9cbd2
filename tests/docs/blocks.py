"""Blocks of code in Markdown files, and what each of them is."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/**/*.md")]
)
COMMANDS = ("hfdataopt", "make", "pip", "python")

Kind = Literal["python", "shell", "toml", "yaml", "output"]


class Block(NamedTuple):
    """A block of a page; ``line`` is that of its first line of code, from 1."""

    page: Path
    line: int
    kind: Kind
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Of a shell block, one command each; lines that end in a backslash are joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip().startswith(COMMANDS)]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order.

    Fenced ones are what their language says. Without one, or as ``text``, they are output, unless the first word is one of
    ``COMMANDS``: then they are shell, as are indented ones. Raises ``ValueError`` for a language that no test reads.
    """
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        line, body = text[: match.start(3)].count("\n") + 1, match[3]
        shell = body.startswith(COMMANDS) and match[2] != "text"
        kind = match[2] if match[2] not in ("", "text") else "shell" if shell else "output"
        kind = {"bash": "shell", "sh": "shell"}.get(kind, kind)
        if kind not in ("python", "shell", "toml", "yaml", "output", "json"):
            raise ValueError(f"{page.name}:{line}: a block in {match[2]!r}, which no test reads")
        found.append(Block(page, line, "output" if kind == "json" else kind, body))  # type: ignore[arg-type]
    fenced = re.sub(r"^( *)```.*?^\1```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    for match in re.finditer(r"(?:^    +\S.*\n)+", fenced, re.MULTILINE):
        if match[0].lstrip().startswith(COMMANDS) and fenced[: match.start()].endswith("\n\n"):
            found.append(Block(page, fenced[: match.start()].count("\n") + 1, "shell", match[0]))
    return sorted(found, key=lambda block: block.line)
