"""Selection: keeping the rows that help. ``select.select`` keeps rows of a dataset by scores or by a column."""
