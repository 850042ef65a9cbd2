"""What every benchmark does first: one thread, since two fight over busy cores, and nothing printed but figures."""

import warnings

import datasets
import torch
import transformers


def quiet_and_single_threaded() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
