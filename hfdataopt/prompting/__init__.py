"""Search for a better prompt: optimizers that ask and are told, and ``PromptTrainer``, which runs them."""
