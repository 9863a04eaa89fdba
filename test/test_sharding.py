"""DTensors that are sharded over the batch: results, gradients, placements. Two processes on the CPU."""

import pytest
import torch

import torch_ctc_align

TWO_PROCESSES = """
import os, sys, torch, torch_ctc_align
import torch.distributed as dist
import torch.multiprocessing as mp

def work(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    operators, mesh = torch.ops.ctc_align, init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(5, 20, 6, generator=generator).log_softmax(-1)
    targets = torch.randint(1, 6, (5, 4), generator=generator)
    lengths = torch.tensor([20, 18, 16, 14, 12]), torch.tensor([4, 3, 2, 1, 0])
    arguments = log_probs, targets, *lengths
    placed = lambda tensor, placement: distribute_tensor(tensor, mesh, [placement])

    try:
        operators.forced_align(placed(log_probs, Shard(0)), placed(targets, Shard(0)))
        said = ["sharded before registering?"]
    except NotImplementedError:
        said = []
    for _ in range(2):
        torch_ctc_align.register_sharding()

    both = Shard(0), Replicate()
    for first, *rest in [(Shard(0),) * 4, (Shard(0), Replicate(), Replicate(), Shard(0)), (Shard(2), Shard(1), *both)]:
        paths, scores = operators.forced_align(*[placed(x, p) for x, p in zip(arguments, (first, *rest))])
        expected = operators.forced_align(*arguments)
        if paths.placements != (Shard(0),) or paths.to_local().shape[0] != (3, 2)[rank]:
            said.append(f"placements {paths.placements}")
        if not (torch.equal(paths.full_tensor(), expected[0]) and torch.equal(scores.full_tensor(), expected[1])):
            said.append(f"wrong with {first, rest}")
    if operators.forced_align(*[placed(x, Replicate()) for x in arguments])[0].placements != (Replicate(),):
        said.append("replicated arguments should stay so")

    stars, gaps = log_probs.amax(-1) - 0.5, torch.ones(5, 5, dtype=torch.bool)
    expected = operators.forced_align(*arguments, 0, stars, gaps)
    found = operators.forced_align(*[placed(x, Shard(0)) for x in arguments], 0, placed(stars, Shard(0)),
                                   placed(gaps, Replicate()))
    if not all(torch.equal(x.full_tensor(), y) for x, y in zip(found, expected)) or not (expected[0] == -2).any():
        said.append("wrong with stars")
    gradients = []
    for place in (lambda x: placed(x, Shard(0))), (lambda x: x):
        y = place(stars.clone()).requires_grad_()
        operators.forced_align(*map(place, arguments), 0, y, place(gaps))[1].square().sum().backward()
        gradients.append(y.grad)
    if not torch.equal(gradients[0].full_tensor(), gradients[1]) or not gradients[1].any():
        said.append("gradient of stars")

    starts, ends = torch.zeros_like(targets), torch.full_like(targets, 9)
    for name, result, borders in [("forced_align", 1, ()), ("posteriors", 0, ()), ("posteriors", 1, ()),
                                  ("class_posteriors", 1, ()), ("span_posteriors", 0, (starts, ends))]:
        gradients = []
        for place in (lambda x: placed(x, Shard(0))), (lambda x: x):
            x = place(log_probs.clone()).requires_grad_()
            y = getattr(operators, name)(x, *map(place, (targets, *borders, *lengths)))[result]
            weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
            (y * place(weights)).sum().backward()
            gradients.append(x.grad)
        if gradients[0].placements != (Shard(0),) or not torch.equal(gradients[0].full_tensor(), gradients[1]):
            said.append(f"gradient of {name}")
    dist.barrier()
    dist.destroy_process_group()
    os.write(1, f"rank {rank}: {said or 'as alone'}\\n".encode())

mp.start_processes(work, (FILE,), 2, start_method="fork")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_items_on_two_processes(fresh_python, tmp_path):
    said = fresh_python(TWO_PROCESSES.replace("FILE", repr(str(tmp_path / "store"))), MASTER_ADDR="127.0.0.1")
    assert sorted(line for line in said.splitlines() if line.startswith("rank")) == [
        "rank 0: as alone",
        "rank 1: as alone",
    ]


def test_importing_the_package_does_not_import_dtensor(fresh_python):
    """It takes longer than the package itself."""
    code = "import sys, torch, torch_ctc_align; print('torch.distributed.tensor' in sys.modules)"
    assert fresh_python(code).strip() == "False"


def test_a_torch_without_it_is_told_apart(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.distributed.tensor.experimental", None)
    with pytest.raises(NotImplementedError, match="register_sharding: this torch has no"):
        torch_ctc_align.register_sharding()
