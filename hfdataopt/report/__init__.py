"""A report of what was scored, selected, tested and searched: one HTML file for people, PNGs, and a section for a card.

:func:`write_report` takes objects or paths; ``hfdataopt report`` finds what is in folders. Nothing in the file is loaded from
anywhere, there is no script in it, and all text is escaped.
"""

from hfdataopt.report.write import write_report

__all__ = ["write_report"]
