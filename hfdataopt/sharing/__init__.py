"""Scores and feature stores as ordinary ``datasets`` repositories of the hub: parquet, a JSON document, and a card.

Nothing that is loaded is executed: parquet of plain types and JSON are read, held to the document's hashes, and checked; only
files of fixed names are looked at.
"""
