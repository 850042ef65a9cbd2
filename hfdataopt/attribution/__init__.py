"""Attribution: which training rows help or harm. Scorers, what they see, where they run, and what comes out.

- ``callback.AttributionCallback``: runs a scorer inside ``transformers.Trainer`` or ``trl.SFTTrainer``
- ``attribute.attribute``: runs it on a model, or on saved checkpoints, with no trainer
- ``scorer``: the contract of a scorer; ``view``: what it sees; ``task``: classification labels, heads and kernels
- ``rows``: row identity, collation; ``scores.Scores``: the result; ``checkpoint.Checkpoint``
"""
