"""Alignment in other processes and threads: workers of a DataLoader, fork, spawn."""

import pytest
import torch
from test_operator import assert_same
from torch.utils.data import DataLoader, Dataset

from torch_ctc_align import ForcedAligner

forced_align = torch.ops.ctc_align.forced_align


def make_item(n):
    """Long enough that a batch of two is aligned by two threads, and one alone as well."""
    generator = torch.Generator().manual_seed(n)
    log_probs = torch.randn(600, 12, generator=generator).log_softmax(-1)
    return log_probs, torch.randint(1, 12, (150,), generator=generator)


class AlignedItems(Dataset):
    """Aligns in the worker; the module is pickled to a spawned one."""

    def __init__(self):
        self.aligner = ForcedAligner()

    def __len__(self):
        return 6

    def __getitem__(self, n):
        log_probs, targets = make_item(n)
        alignment = self.aligner(log_probs[None], targets[None])
        return n, alignment.paths[0], alignment.durations[0]


def align_items(numbers):
    items = [make_item(n) for n in numbers]
    return forced_align(torch.stack([x for x, _ in items]), torch.stack([y for _, y in items]))[0]


def align_on_one_thread(numbers):
    torch.set_num_threads(1)
    return align_items(numbers)


@pytest.fixture
def busy_parent(threads):
    """The parent has aligned on several threads, so that its OpenMP pool is there when it forks."""
    threads(2)
    return align_items(range(6))


# The warning of torch and multiprocessing about any fork in a process with threads.
ignore_fork_warnings = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@ignore_fork_warnings
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader_align(busy_parent, context):
    """A worker runs on one thread, so fork is safe for it."""
    loader = DataLoader(AlignedItems(), batch_size=2, num_workers=2, multiprocessing_context=context, timeout=120)
    expected = ForcedAligner()(*(torch.stack(x) for x in zip(*map(make_item, range(6)), strict=True)))
    seen = []
    for numbers, paths, durations in loader:
        assert torch.equal(paths, busy_parent[numbers])
        assert torch.equal(durations, expected.durations[numbers])
        seen += numbers.tolist()
    assert seen == list(range(6))


@ignore_fork_warnings
@pytest.mark.parametrize("context, work", [("fork", align_on_one_thread), ("spawn", align_items)])
def test_multiprocessing(busy_parent, context, work):
    """After fork on one thread (docs/in_compiled_graphs.md says why), after spawn on any number."""
    with torch.multiprocessing.get_context(context).Pool(2) as pool:
        first, second = pool.map_async(work, [[0, 1, 2], [3, 4, 5]]).get(timeout=120)
    assert_same([torch.cat([first, second])], [busy_parent])


def test_fork_before_any_thread(fresh_python):
    """A parent that has not used threads yet may fork, and the child may use them."""
    printed = fresh_python(
        """
import os, torch, torch_ctc_align
torch.set_num_threads(1)
log_probs, targets = torch.zeros(2, 400, 9), torch.arange(200).expand(2, 200) % 8 + 1
torch.set_num_threads(2)
child = os.fork()
if child == 0:
    paths, _ = torch.ops.ctc_align.forced_align(log_probs, targets)
    os._exit(0 if (paths >= 0).all() else 1)
print(os.waitpid(child, 0)[1])
"""
    )
    assert printed.strip() == "0"
