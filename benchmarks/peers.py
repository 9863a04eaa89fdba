"""The aligners that are compared, as functions of one kind.

An aligner is align(log_probs, targets) -> [(paths, scores), ...]. It gets float32 (B, T, C) and int64 (B, L), as users
have them, and may return one pair for the batch or one for each item. A peer is called without the checks of its own
Python function, where this is possible; some checks would cost more than the alignment of a short item.

The Python that runs this file looks for peers in its own environment. Beside a CPU-only torch, torchaudio cannot be
imported, but its operator can be loaded; the folder `stubs` of the environment holds the libraries that it needs first.
"""

import ctypes
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

PEERS = ("torchaudio", "ctc-forced-aligner", "hirschberg-viterbi")


def load_ours():
    import torch

    import torch_ctc_align  # noqa: F401

    operator = torch.ops.ctc_align.forced_align.default
    return lambda log_probs, targets: [operator(log_probs, targets)]


def load_torchaudio():
    import torch

    for stub in sorted(Path(sys.prefix, "stubs").glob("*.so*")):
        ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(find_library("torchaudio", "lib/libtorchaudio*.so"))
    operator = torch.ops.torchaudio.forced_align.default

    def align(log_probs, targets):
        lengths = torch.tensor([log_probs.shape[1]]), torch.tensor([targets.shape[1]])
        paths, emissions = operator(log_probs, targets, *lengths, 0)
        return paths, emissions[:, torch.arange(paths.shape[1]), paths[0]]

    return one_by_one(align)


def load_torchaudio_functional():
    """For CUDA tensors: the function that users call, checks included."""
    from torchaudio.functional import forced_align

    return one_by_one(forced_align)


def load_ctc_forced_aligner():
    import torch

    # Only the module that aligns: the package around it needs an acoustic model's runtime.
    spec = importlib.util.spec_from_file_location("aligner", find_library("ctc_forced_aligner", "ctc_aligner.py"))
    aligner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(aligner)

    def align(log_probs, targets):
        paths, scores = aligner.align_sequences(log_probs.numpy(), targets.numpy(), 0)
        return torch.from_numpy(paths), torch.from_numpy(scores)[None]

    return one_by_one(align)


def load_hirschberg_viterbi():
    from hirschberg_viterbi import hirschberg_viterbi

    return one_by_one(lambda log_probs, targets: hirschberg_viterbi(log_probs, targets.int()))


def find_library(package, pattern):
    """A file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"No module named {package!r}")
    return str(next(Path(spec.origin).parent.glob(pattern)))


def one_by_one(align):
    """Aligns a batch with a function that takes one item a call."""
    return lambda log_probs, targets: [align(log_probs[b : b + 1], targets[b : b + 1]) for b in range(len(targets))]


LOADERS = {
    "ours": load_ours,
    "torchaudio": load_torchaudio,
    "torchaudio.functional": load_torchaudio_functional,
    "ctc-forced-aligner": load_ctc_forced_aligner,
    "hirschberg-viterbi": load_hirschberg_viterbi,
}


def load(backend):
    return LOADERS[backend]()


def version(backend):
    return importlib.metadata.version(backend)
