"""Checks one installed wheel beside one torch on one Python; check_matrix.py runs it in each environment.

    ENVIRONMENT/bin/python -I test/matrix_cell.py SAVED        # SAVED: test/data/saved

It needs torch, the package and a C++ compiler, and nothing else. Each check is a promise. On standard output there is a
line of JSON before each check and one after it, so that a crash has a name too.
"""

import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.export import Dim
from torch.utils._pytree import tree_leaves


def has_gil() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


GIL_WITH_TORCH = has_gil()

import torch_ctc_align  # noqa: E402
from torch_ctc_align import AlignmentError, forced_align  # noqa: E402

PROMISES: dict[str, Callable[[], None]] = {}


def promise(name: str, control: Callable[[], None] | None = None):
    """Names a check. If it fails and `control`, the same without us, fails too, then it is torch that refuses."""

    def register(check):
        check.control = control
        PROMISES[name] = check
        return check

    return register


def say(**what) -> None:
    print(json.dumps(what), flush=True)


@promise("import")
def check_import():
    assert Path(torch_ctc_align.__file__).is_relative_to(sys.prefix), torch_ctc_align.__file__
    assert has_gil() == GIL_WITH_TORCH, "importing the package switched the GIL on"
    say(
        versions={
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": sys.version.split()[0],
            "gil": has_gil(),
            "package": torch_ctc_align.__version__,
        }
    )


# ------------------------------------------------------------------------------ answers by brute force


def paths_that_spell(target, T, C, blank=0):
    """All (C ** T) ways through T frames that collapse to the target."""
    for path in itertools.product(range(C), repeat=T):
        if [c for c, _ in itertools.groupby(path) if c != blank] == target:
            yield path


def eighths(B, T, C, dtype):
    """Multiples of 1/8, so that sums are exact in every dtype."""
    return (torch.randint(-32, 1, (B, T, C), generator=torch.Generator().manual_seed(T)) / 8).to(dtype)


TARGETS = [[1, 2], [3, 3], [2, 1]]


@promise("align")
def check_alignment():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        log_probs = eighths(3, 6, 4, dtype)
        paths, scores = torch_ctc_align.forced_align(log_probs, torch.tensor(TARGETS))
        assert scores.dtype == dtype
        for emissions, path, score, target in zip(
            log_probs.tolist(), paths.tolist(), scores.tolist(), TARGETS, strict=True
        ):
            totals = {p: sum(map(lambda row, c: row[c], emissions, p)) for p in paths_that_spell(target, 6, 4)}
            assert totals[tuple(path)] == max(totals.values()) == sum(score), (dtype, path, score)


@promise("spans")
def check_spans():
    targets = torch.tensor([[1, 2, 2]])
    log_probs = torch.full((1, 7, 3), -8.0)
    for t, c in enumerate([0, 1, 1, 2, 0, 2, 0]):
        log_probs[0, t, c] = -0.25
    paths, scores = torch_ctc_align.forced_align(log_probs, targets)
    spans = torch_ctc_align.token_spans(paths, scores, targets)
    assert (spans.starts.tolist(), spans.ends.tolist()) == ([[1, 3, 5]], [[3, 4, 6]])
    merged = torch_ctc_align.merge_tokens(paths[0], scores[0])
    assert [(s.token, s.start, s.end, s.score) for s in merged] == [
        (1, 1, 3, -0.25),
        (2, 3, 4, -0.25),
        (2, 5, 6, -0.25),
    ]
    durations = torch_ctc_align.token_durations(spans, torch.tensor([7]))
    assert durations.sum().item() == 7


@promise("posteriors")
def check_posteriors():
    log_probs = torch.randn(1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    emissions = log_probs[0].tolist()
    weights = {p: math.exp(sum(map(lambda row, c: row[c], emissions, p))) for p in paths_that_spell([1, 3], 5, 4)}
    total = sum(weights.values())
    expected = [[sum(w for p, w in weights.items() if p[t] == c) / total for c in range(4)] for t in range(5)]
    found, log_likelihoods = torch_ctc_align.class_posteriors(log_probs, torch.tensor([[1, 3]]))
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert math.isclose(log_likelihoods.item(), math.log(total), rel_tol=1e-12)


@promise("ctc_loss")
def check_ctc_loss():
    log_probs = torch.randn(9, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    arguments = torch.tensor(TARGETS), torch.tensor([9, 8, 9]), torch.tensor([2, 2, 1])
    torch.testing.assert_close(
        torch_ctc_align.ctc_loss(log_probs, *arguments), torch.nn.functional.ctc_loss(log_probs, *arguments)
    )


@promise("backward")
def check_backward():
    """Of scores: one at the entries of the path. Of the others: by finite differences."""
    log_probs = eighths(3, 6, 4, torch.float32).requires_grad_()
    targets = torch.tensor(TARGETS)
    paths, scores = torch_ctc_align.forced_align(log_probs, targets)
    scores.sum().backward()
    assert torch.equal(log_probs.grad, torch.nn.functional.one_hot(paths, 4).float())
    small = torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([[1, 2]])
    torch.autograd.gradcheck(lambda x: torch_ctc_align.posteriors(x.log_softmax(-1), target), small)
    lengths = torch.tensor([4]), torch.tensor([2])
    loss = torch_ctc_align.ctc_loss
    torch.autograd.gradcheck(lambda x: loss(x.log_softmax(-1).transpose(0, 1), target, *lengths), small)


@promise("errors")
def check_errors():
    impossible = torch.zeros(1, 2, 3), torch.tensor([[1, 1]])
    for kind in (ValueError, RuntimeError, AlignmentError):
        try:
            forced_align(*impossible)
        except kind as error:
            assert (error.item, error.frames, error.labels, error.repeats) == (0, 2, 2, 1)
            assert "targets length is too long for CTC" in str(error)
        else:
            raise AssertionError(f"no {kind.__name__}")

    def raised(kind, text, function, *arguments):
        try:
            function(*arguments)
        except Exception as error:
            assert type(error) is kind, f"expected {kind.__name__}, found {type(error).__name__}: {error}"
            assert re.search(text, str(error)), str(error)
        else:
            raise AssertionError(f"no {kind.__name__} of {text}")

    operator = torch.ops.ctc_align.forced_align
    log_probs, targets = torch.zeros(2, 6, 5), torch.ones(2, 3, dtype=torch.int64)
    raised(AlignmentError, "log_probs must be float16, bfloat16, float32 or float64, found int64",
           forced_align, log_probs.long(), targets)  # fmt: skip
    raised(ValueError, r"targets must have shape \(B, L\) with B = 2", operator, log_probs, targets[:1])
    raised(ValueError, r"targets\[0, 2\] must be a class", operator, log_probs, targets + torch.tensor([0, 0, 4]))
    raised(TypeError, "targets", forced_align, log_probs, [[1, 2], [1, 2]])
    marked, scores = forced_align(*impossible, strict=False)
    assert marked.tolist() == [[-1, -1]]
    assert scores.tolist() == [[-math.inf, -math.inf]]
    assert torch_ctc_align.min_frames(impossible[1]).tolist() == [3]


@promise("threads")
def check_threads():
    """From 8 threads at once: each gets the bits that it gets alone. Without a GIL they really meet."""

    def work(seed):
        log_probs = torch.randn(4, 300, 20, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
        targets = torch.randint(1, 20, (4, 40), generator=torch.Generator().manual_seed(seed))
        leaf = log_probs.requires_grad_()
        paths, scores = torch_ctc_align.forced_align(leaf, targets)
        _, log_likelihoods = torch_ctc_align.posteriors(leaf, targets)
        (scores.sum() + log_likelihoods.sum()).backward()
        return paths, scores.detach(), leaf.grad

    alone = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for found, expected in zip(pool.map(work, range(8)), alone, strict=True):
                assert all(map(torch.equal, found, expected))


# ------------------------------------------------------------------------------ graphs


def compile_quickly():
    """Precompiled headers pay from the second program on. Not imported earlier: triton switches the GIL on."""
    from torch._inductor import config

    for place, name in ((config, "cpp_cache_precompile_headers"), (config.aot_inductor, "precompile_headers")):
        if hasattr(place, name):
            setattr(place, name, False)


def control_compile():
    torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.zeros(3))


def control_export():
    torch.export.save(torch.export.export(torch.nn.Linear(2, 3), (torch.zeros(2, 2),)), "control.pt2")
    torch.export.load("control.pt2")


def control_aoti():
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(3),))
    torch._inductor.aoti_load_package(
        torch._inductor.aoti_compile_and_package(program, package_path=f"{os.getcwd()}/c.pt2")
    )


def model():
    """Exact on multiples of 1/8, so that compiled code gives the same bits."""

    class Model(torch.nn.Module):
        align = staticmethod(torch_ctc_align.forced_align)

        def forward(self, log_probs, targets, input_lengths, target_lengths):
            paths, scores = self.align(log_probs * 2, targets, input_lengths, target_lengths, strict=False)
            return paths, scores * 2

    return Model()


def case(B, T, L):
    targets = torch.randint(1, 4, (B, L), generator=torch.Generator().manual_seed(L))
    return eighths(B, T, 4, torch.float32), targets, torch.full((B,), T - 1), torch.full((B,), L - 1)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype, (x.dtype, y.dtype)
        assert torch.equal(x, y), (x, y)


@promise("compile", control_compile)
def check_compile():
    """One graph for all sizes, with its gradient."""
    compile_quickly()

    def function(*arguments):
        paths, scores = model_(*arguments)
        return paths, scores, scores.square().sum()

    model_ = model()
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for i, sizes in enumerate([(2, 20, 5), (3, 31, 7)]):
        log_probs, *rest = case(*sizes)
        gradients = []
        for which in (function, compiled):
            leaf = log_probs.clone().requires_grad_()
            with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
                results = which(leaf, *rest)
            results[-1].backward()
            gradients.append((*(x.detach() for x in results[:2]), leaf.grad))
        assert_same(*gradients)


def exported():
    B, T, L = Dim("B", max=64), Dim("T", min=2, max=4096), Dim("L", max=2048)
    return torch.export.export(model(), case(2, 20, 5), dynamic_shapes=({0: B, 1: T}, {0: B, 1: L}, {0: B}, {0: B}))


@promise("export", control_export)
def check_export():
    torch.export.save(exported(), "exported.pt2")
    assert_same(torch.export.load("exported.pt2").module()(*case(3, 31, 7)), model()(*case(3, 31, 7)))


@promise("AOTInductor", control_aoti)
def check_aoti():
    compile_quickly()
    path = torch._inductor.aoti_compile_and_package(exported(), package_path=f"{os.getcwd()}/aligner.pt2")
    assert_same(torch._inductor.aoti_load_package(path)(*case(3, 31, 7)), model()(*case(3, 31, 7)))


def run_saved(load, file):
    releases = sorted(SAVED.iterdir())
    assert releases, f"{SAVED} is empty"
    for release in releases:
        program = load(str(release / file))
        for arguments, expected in torch.load(release / "cases.pt"):
            assert_same(tree_leaves(program(*arguments)), expected)


@promise("saved program", control_export)
def check_saved_program():
    run_saved(lambda path: torch.export.load(path).module(), "exported.pt2")


@promise("saved package")
def check_saved_package():
    import torch._inductor.codecache  # torch 2.10 forgets it

    run_saved(torch._inductor.aoti_load_package, "compiled.pt2")


def in_one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def main() -> None:
    os.chdir(tempfile.mkdtemp(dir=os.getcwd()))  # empty
    for name, check in PROMISES.items():
        say(begin=name)
        start = time.monotonic()
        outcome = {}
        try:
            check()
        except Exception as error:  # whatever it is: the others are checked too
            outcome["failed"] = in_one_line(error)
            if check.control:
                try:
                    check.control()
                except Exception as refusal:
                    outcome = {"refused": in_one_line(refusal)}
        say(end=name, seconds=round(time.monotonic() - start, 1), **outcome)


if __name__ == "__main__":
    SAVED = Path(sys.argv[1])
    main()
