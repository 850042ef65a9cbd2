"""How accelerate deals rows and what a prepared loader is. Written against accelerate 1.15.

What several processes do is in ``tests/processes`` and ``tests/attribution/test_processes.py``, started as
``ACCELERATE_USE_CPU=true torchrun``. Not relied on: ``accelerate launch --cpu``, ``gather`` of differing shapes (objects are gathered).
"""

import accelerate
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import gather_object
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

WHO = f"accelerate {accelerate.__version__} (written against 1.15)"


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def test_rows_that_do_not_divide_are_filled_with_the_first_rows():
    """7 rows in batches of 2 on 2 processes: row 0 comes twice, so results are joined on row ids."""

    def dealt(process):
        return list(BatchSamplerShard(BatchSampler(SequentialSampler(range(7)), 2, False), 2, process))

    assert dealt(0) == [[0, 1], [4, 5]], WHO
    assert dealt(1) == [[2, 3], [6, 0]], WHO


def test_a_prepared_loader_keeps_dataset_and_collator(accelerator):
    """The callback takes its pool and its collator from the loader that the trainer prepared."""

    def collate(rows):
        return {"x": torch.tensor(rows)}

    loader = accelerator.prepare(DataLoader([3, 4, 5], batch_size=2, collate_fn=collate))
    assert type(loader).__name__ == "DataLoaderShard", WHO
    assert loader.dataset == [3, 4, 5], WHO
    assert loader.collate_fn is collate, WHO


def test_a_prepared_optimizer_has_the_param_groups(accelerator):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = accelerator.prepare(torch.optim.AdamW([parameter], lr=0.25))
    assert type(optimizer).__name__ == "AcceleratedOptimizer", WHO
    assert optimizer.param_groups[0]["lr"] == 0.25, WHO


def test_one_process_gathers_what_it_gave(accelerator):
    assert accelerator.num_processes == 1
    assert accelerator.is_main_process
    assert gather_object([{"row": 1}]) == [{"row": 1}], WHO
    with accelerator.split_between_processes(list(range(5))) as mine:
        assert mine == [0, 1, 2, 3, 4], WHO


def test_padding_across_processes_leaves_one_process_alone(accelerator):
    assert accelerator.pad_across_processes(torch.ones(2, 3)).shape == (2, 3), WHO
