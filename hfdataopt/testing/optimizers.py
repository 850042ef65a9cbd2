"""."""

from hfdataopt.testing.kit import Case


class FilterCase(Case):
    data = ()


class OptimizerCase(Case):
    data = ()
