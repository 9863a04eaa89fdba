"""ctc_loss in graphs and transforms: torch.compile, torch.export, torch.func; and where no value may be read."""

import threading

import pytest
import torch
import torch.nn.functional as F
from conftest import RecordCalls
from test_ctc_loss import draw, in_a_row
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_ctc_align import CTCLoss, ctc_loss

operator = torch.ops.ctc_align.class_posteriors.default

# Two batches whose extents all differ, in and between them, because torch.compile takes equal sizes for one. In a row
# the first has fewer labels than frames, the second more than T + 1.
FIRST = (
    torch.linspace(-3, 2, 7 * 2 * 6).reshape(7, 2, 6).sin(),
    torch.tensor([[1, 1, 2], [4, 3, 0]]),
    torch.tensor([7, 6]),
    torch.tensor([3, 2]),
)
SECOND = (
    torch.linspace(-9, 4, 11 * 4 * 8).reshape(11, 4, 8).sin(),
    torch.tensor([[1, 2, 3, 5, 7], [2, 2, 2, -1, -1], [9, 9, 9, 9, 9], [7, 6, 5, 4, 4]]),
    torch.tensor([11, 9, 3, 10]),
    torch.tensor([5, 3, 0, 5]),
)
LONGER = (torch.cat([FIRST[0], FIRST[0] / 2]), FIRST[1], torch.tensor([13, 14]), FIRST[3])
ROWS = [(logits, in_a_row(targets, lengths[1]), *lengths) for logits, targets, *lengths in (FIRST, SECOND)]


def loss(logits, targets, input_lengths, target_lengths):
    return ctc_loss(logits.log_softmax(-1), targets, input_lengths, target_lengths)


def value_and_gradient(function, logits, *arguments):
    leaf = logits.clone().requires_grad_()
    value = function(leaf, *arguments)
    value.backward()
    return value.detach(), leaf.grad


# ----------------------------------------------------------------------------------------------------- torch.compile


@pytest.mark.parametrize("cases", [(FIRST, SECOND), ROWS], ids=["padded", "in-a-row"])
def test_one_graph_for_all_sizes(cases):
    """Forward and backward, beside torch's own in eager mode; a second batch of other sizes compiles nothing."""
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)

    def theirs(logits, *arguments):
        return F.ctc_loss(logits.log_softmax(-1), *arguments)

    torch.testing.assert_close(value_and_gradient(compiled, *cases[0]), value_and_gradient(theirs, *cases[0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        found = value_and_gradient(compiled, *cases[1])
    torch.testing.assert_close(found, value_and_gradient(theirs, *cases[1]))


def test_lists_of_lengths_in_a_graph():
    compiled = torch.compile(loss, fullgraph=True)
    for logits, targets, *lengths in (FIRST, ROWS[0]):
        expected = loss(logits, targets, *lengths)
        torch.testing.assert_close(compiled(logits, targets, *(x.tolist() for x in lengths)), expected)
        torch.testing.assert_close(compiled(logits, targets, lengths[0], tuple(lengths[1].tolist())), expected)


def test_the_module_in_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.LogSoftmax(-1))
    criterion = CTCLoss(reduction="sum", zero_infinity=True)

    def step(features, *arguments):
        return criterion(model(features), *arguments)

    expected = value_and_gradient(step, *FIRST)
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    torch.testing.assert_close(value_and_gradient(compiled, *FIRST), expected)


@pytest.mark.parametrize("frames", [1, 3, 5, 6])
def test_a_target_of_more_labels_than_frames_has_no_path(frames):
    """In a graph targets in a row are padded to T + 1 labels, so that one label is too many even there."""
    row, lengths = torch.tensor([1, 2, 1, 2, 1, 2, 3]), torch.tensor([6, 1])
    arguments = torch.zeros(frames, 2, 4), row, torch.tensor([frames, frames]), lengths
    compiled = torch.compile(lambda *x: ctc_loss(*x, reduction="none"), fullgraph=True, dynamic=True)
    expected = F.ctc_loss(*arguments, reduction="none")
    assert expected[0].isinf() == (frames < 6)
    torch.testing.assert_close(compiled(*arguments), expected)


@pytest.mark.parametrize(
    "lengths, message",
    [
        ([3, 3], r"targets\[1, 2\] must be a class of log_probs, expected 0 <= label < C = 6, found -1"),
        ([-1, 2], r"target_lengths\[0\] must be between 0 and L = 5, found -1"),
    ],
)
def test_bad_values_raise_when_a_graph_runs(lengths, message):
    """There the operator speaks. Labels that a row does not have are -1 in the padded targets."""
    logits, row, input_lengths, _ = ROWS[0]
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    with pytest.raises(Exception, match=message):
        compiled(logits, row, input_lengths, torch.tensor(lengths))


def test_errors_while_a_graph_is_made():
    """torch.export raises the ValueError of a plain call, torch.compile its own error around it."""
    logits, targets, *lengths = FIRST
    for wrong, message in (
        (targets.float(), "targets must be integers, found float32; pass targets.long()"),
        (targets[:1], "targets must have shape (N, S) with N = 2 as in log_probs, or be in a row, found (1, 3)"),
    ):
        with pytest.raises(ValueError) as raised:
            torch.export.export(CTCLoss(), (logits, wrong, *lengths))
        assert str(raised.value) == f"ctc_loss: {message}"
        with pytest.raises(RuntimeError) as raised:
            torch.compile(loss, fullgraph=True)(logits, wrong, *lengths)
        assert f"ctc_loss: {message}" in str(raised.value)


# ------------------------------------------------------------------------------------------------------ torch.export


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("cases", [(FIRST, SECOND), ROWS], ids=["padded", "in-a-row"])
def test_export_with_any_sizes(cases, strict):
    auto = torch.export.Dim.AUTO
    shapes = tuple(dict.fromkeys(range(x.dim()), auto) for x in cases[0])
    program = torch.export.export(CTCLoss(), cases[0], dynamic_shapes=shapes, strict=strict)
    exported = program.module()
    for arguments in cases:
        assert torch.equal(exported(*arguments), ctc_loss(*arguments))


def test_an_exported_step_trains():
    """Exported for training, it has the gradient."""
    step = Model()
    exported = torch.export.export(step, FIRST).module()
    exported(*FIRST).backward()
    step(*FIRST).backward()
    (name,) = [name for name, _ in exported.named_parameters() if name.endswith("weight")]
    torch.testing.assert_close(exported.get_parameter(name).grad, step.linear.weight.grad)


# ------------------------------------------------------------------------------------------- torch.fx, TorchScript


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)
        self.criterion = CTCLoss()

    def forward(self, features, targets, input_lengths, target_lengths):
        log_probs = self.linear(features).log_softmax(-1)
        return self.criterion(log_probs, targets, input_lengths, target_lengths)


def test_a_symbolic_trace_sees_a_leaf():
    """As it sees torch.nn.CTCLoss."""
    model = Model()
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["linear", "criterion"]
    assert torch.equal(traced(*LONGER), model(*LONGER))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_the_module_is_traced_but_not_scripted():
    model = Model()
    for module in (model.criterion, model):
        with pytest.raises(NotImplementedError, match=r"CTCLoss: .* call torch\.ops\.ctc_align\.class_posteriors in"):
            torch.jit.script(module)
    with pytest.raises(
        RuntimeError, match=r"torch_ctc_align\.ctc_loss: .* call torch\.ops\.ctc_align\.class_posteriors"
    ):
        torch.jit.script(ctc_loss)
    traced = torch.jit.trace(model, FIRST)
    assert torch.equal(traced(*LONGER), model(*LONGER))


# -------------------------------------------------------------------------------------------------------- torch.func


def test_vmap_over_items_is_one_call(generator):
    """Each item without a batch, as in torch's unbatched form."""
    logits, targets, *lengths = SECOND
    log_probs = logits.log_softmax(-1)

    def one(*arguments):
        return ctc_loss(*arguments, reduction="none")

    with RecordCalls() as seen:
        found = torch.vmap(one, in_dims=(1, 0, 0, 0))(log_probs, targets, *lengths)
    assert seen.calls.count(operator) == 1
    assert torch.equal(found, one(log_probs, targets, *lengths))


def test_vmap_over_batches():
    """Of log_probs alone, and of everything; targets in a row, too."""
    for logits, targets, *lengths in (FIRST, ROWS[0]):
        several = torch.stack([logits, logits.flip(0), logits * 2])
        expected = torch.stack([loss(one, targets, *lengths) for one in several])
        torch.testing.assert_close(torch.vmap(lambda x, t=targets, n=lengths: loss(x, t, *n))(several), expected)
        everything = [x.expand(3, *x.shape) for x in (targets, *lengths)]
        torch.testing.assert_close(torch.vmap(loss)(several, *everything), expected)


def test_gradients_by_item():
    logits, targets, *lengths = FIRST
    log_probs = logits.log_softmax(-1)
    by_item = torch.vmap(torch.func.grad(ctc_loss), in_dims=(1, 0, 0, 0), out_dims=1)
    found = by_item(log_probs, targets, *lengths)
    _, expected = value_and_gradient(ctc_loss, log_probs, targets, *lengths)
    torch.testing.assert_close(found, expected * 2)  # the mean over two items


def test_transforms_agree():
    logits, targets, *lengths = FIRST
    log_probs = logits.double()

    def by(x):
        return ctc_loss(x, targets, *lengths, reduction="none")

    jacobian = torch.func.jacrev(by)(log_probs)
    torch.testing.assert_close(torch.func.jacfwd(by)(log_probs), jacobian)
    tangent = log_probs.cos()
    torch.testing.assert_close(torch.func.jvp(by, (log_probs,), (tangent,))[1], torch.tensordot(jacobian, tangent, 3))
    hessian = torch.func.hessian(lambda x: by(x).sum())(log_probs).flatten(0, 2).flatten(1)
    torch.testing.assert_close(hessian, hessian.T)
    assert torch.linalg.eigvalsh(hessian).max() < 1e-12  # the loss is minus a log-sum-exp, which is convex
    assert hessian.abs().max() > 0.01


# ------------------------------------------------------------------------------------------------- no value is read


class RefuseToRead(RecordCalls):
    """Stands for a device that a read would wait for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a value was read"
        return super().__torch_dispatch__(function, types, args, kwargs)


@pytest.mark.parametrize("arguments", [FIRST, ROWS[0]], ids=["padded", "in-a-row"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_value_is_read(arguments, reduction):
    options = {"reduction": reduction, "zero_infinity": True}
    expected = ctc_loss(*arguments, **options)
    leaf = arguments[0].clone().requires_grad_()
    with RefuseToRead() as seen:
        found = ctc_loss(leaf, *arguments[1:], **options)
        found.sum().backward()
    assert operator in seen.calls
    assert torch.equal(found, expected)
    assert leaf.grad.any()
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in arguments]
        assert ctc_loss(*fake, **options).shape == expected.shape


@pytest.mark.parametrize("reduction, shape", [("none", (2,)), ("mean", ()), ("sum", ())])
def test_another_device(reduction, shape):
    """Targets and lengths may stay on the CPU, as cuDNN's loss wants them, or come as lists."""
    for case in (FIRST, ROWS[0]):
        log_probs, targets, *lengths = (x.to("meta") for x in case)
        for others in ((targets, *lengths), case[1:], (case[1], *(x.tolist() for x in case[2:])), (targets, *case[2:])):
            found = ctc_loss(log_probs, *others, reduction=reduction)
            assert found.is_meta
            assert found.shape == shape


def test_copies_to_another_device_do_not_wait():
    """Of memory that may be pinned a copy would go on after the call, so a clone is copied, which is not pinned."""

    class Copies(RecordCalls):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = super().__torch_dispatch__(function, types, args, kwargs)
            if function is torch.ops.aten._to_copy.default and result.is_meta:
                self.copies.append((args[0].data_ptr(), kwargs["non_blocking"]))
            return result

    log_probs, others = FIRST[0].to("meta"), ROWS[0][1:]
    seen = Copies()
    seen.copies = []
    with seen:
        ctc_loss(log_probs, *others)
        ctc_loss(log_probs, others[0], others[1].tolist(), others[2].tolist())
    assert len(seen.copies) == 6
    assert all(non_blocking for _, non_blocking in seen.copies)
    assert not {address for address, _ in seen.copies} & {x.data_ptr() for x in others}


def test_the_width_of_targets_in_a_row():
    """The longest target where lengths are known; else T + 1, or all labels if they are fewer."""

    class Widths(RecordCalls):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is operator:
                self.widths.append(args[1].shape[1])
            return super().__torch_dispatch__(function, types, args, kwargs)

    seen = Widths()
    seen.widths = []
    row, lengths = torch.tensor([1, 2, 3, 1, 2]), [3, 2]
    with seen:  # so a mode is at work, and the values of tensors are not read
        ctc_loss(torch.zeros(9, 2, 4), row, [3, 3], torch.tensor(lengths))
        ctc_loss(torch.zeros(3, 2, 4), row, [3, 3], torch.tensor(lengths))
        ctc_loss(torch.zeros(3, 2, 4), row, [3, 3], torch.tensor(lengths, dtype=torch.uint8))
        assert seen.widths == [5, 4, 4]
        ctc_loss(torch.zeros(9, 2, 4), row, [3, 3], lengths)
    assert seen.widths[3:] == [3]


# ------------------------------------------------------------------------------------------- several devices, threads


def test_parts_of_a_batch_add_up(generator):
    """What DataParallel does: each replica gets some items, and the losses come together."""
    logits, targets, *lengths = draw(generator)
    log_probs = logits.log_softmax(-1)
    whole = ctc_loss(log_probs, targets, *lengths, reduction="none")
    parts = [None] * len(whole)

    def work(n):
        item = slice(n, n + 1)
        parts[n] = ctc_loss(log_probs[:, item], targets[item], *(x[item] for x in lengths), reduction="none")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(whole))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.cat(parts), whole)
