"""Times alignment and spans of one clip as clients compute them, before and after they use our functions.

    make test-clients                                                            # sets .clients up
    LD_LIBRARY_PATH=.clients/stubs .clients/bin/python benchmarks/clients.py     # a minute, one thread

The replacements are those of test/test_clients.py, which also shows that the results are equal. The emissions are made
outside the clock, so no acoustic model is timed. Before and after take turns.
"""

import argparse
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timing import seconds

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import test_clients as replacements  # noqa: E402

from torch_ctc_align import install_in_torchaudio  # noqa: E402

CASES = [(300, 40), (1000, 130)]  # frames, labels
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def load_clients(patches):
    """{name: (make, replace)}: make(emission, text) -> a call of the client; replace() -> a context with ours in it."""
    for name in ("librosa", "onnxruntime"):
        replacements.stand_in(patches, name)
    import ctc_forced_aligner
    import torchaudio
    import torchaudio.functional as F
    import whisperx.alignment
    from lhotse.workflows.forced_alignment import asr_aligner

    def ids(text):
        return [LETTERS.index(c) + 1 for c in text]

    def torchaudio_functions(emission, text):
        targets = torch.tensor([ids(text)], dtype=torch.int32)

        def call():
            paths, scores = F.forced_align(emission[None], targets)
            return F.merge_tokens(paths[0], scores[0].exp())

        return call

    def pipeline(emission, text):  # lhotse's MMS aligner uses it, too
        tokens = [ids(text[i : i + 5]) for i in range(0, len(text), 5)]
        aligner = torchaudio.pipelines.MMS_FA.get_aligner()
        return lambda: aligner(emission, tokens)

    def ctc_with_torch(emission, text):
        def call():
            paths, scores = ctc_forced_aligner.align(emission[None], ids(text), "cpu")
            return F.merge_tokens(paths[0], scores[0])

        return call

    def ctc_with_onnx(emission, text):
        array, tokens = emission.numpy(), [" ".join(text[i : i + 5]) for i in range(0, len(text), 5)]
        vocabulary = {"<blank>": 0} | {c: i + 1 for i, c in enumerate(LETTERS)}
        tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary, pad_token_id=0)

        def call():
            segments, _, blank = ctc_forced_aligner.get_alignments(array, tokens, tokenizer)
            return ctc_forced_aligner.get_spans(tokens, segments, blank)

        return call

    def trellis(get_trellis, backtrack, merge_repeats):
        def make(emission, text):
            tokens = ids(text)

            def call():
                path = backtrack()(get_trellis()(emission, tokens, 0), emission, tokens, 0)
                return merge_repeats(path, text)

            return call

        return make

    def patched(patch):
        def replace():
            context = pytest.MonkeyPatch.context()

            class Replaced:
                def __enter__(self):
                    patch(context.__enter__())

                def __exit__(self, *error):
                    context.__exit__(*error)

            return Replaced()

        return replace

    w = whisperx.alignment
    return {
        "torchaudio.functional": (torchaudio_functions, install_in_torchaudio),
        "torchaudio's MMS_FA aligner, lhotse's MMS": (pipeline, install_in_torchaudio),
        "ctc-forced-aligner with torch": (ctc_with_torch, install_in_torchaudio),
        "ctc-forced-aligner with ONNX": (
            ctc_with_onnx,
            patched(lambda p: p.setattr(ctc_forced_aligner, "forced_align", replacements.in_numpy)),
        ),
        "whisperX": (
            trellis(lambda: w.get_trellis, lambda: w.backtrack, w.merge_repeats),
            patched(lambda p: replacements.use_our_kernel(p, w, "get_trellis", "backtrack")),
        ),
        "lhotse's ASR aligner": (
            trellis(lambda: asr_aligner._get_trellis, lambda: asr_aligner._backtrack, asr_aligner._merge_repeats),
            patched(lambda p: replacements.use_our_kernel(p, asr_aligner, "_get_trellis", "_backtrack")),
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of before and after (default: 15)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print(f"torch {torch.__version__}; median milliseconds of one clip, ratio of the medians")
    print("| client | frames | labels | before | after | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with pytest.MonkeyPatch.context() as patches:
        for name, (make, replace) in load_clients(patches).items():
            for frames, labels in CASES:
                letters = torch.randint(26, (labels,), generator=generator).tolist()
                text = "".join(LETTERS[i] for i in letters)
                starts = [
                    2 * i + 1 for i in sorted(torch.randperm(frames // 2 - 1, generator=generator)[:labels].tolist())
                ]
                emission = replacements.spiky([i + 1 for i in letters], starts, frames, 27)[0]
                call = make(emission, text)
                before, after = [], []
                for _ in range(arguments.rounds):
                    before += [seconds(call) for _ in range(3)]
                    with replace():
                        call()  # the first call after an installation is not timed
                        after += [seconds(call) for _ in range(10)]
                b, a = (1e3 * statistics.median(times) for times in (before, after))
                print(f"| {name} | {frames} | {labels} | {b:.3f} | {a:.3f} | {b / a:.1f} |", flush=True)


if __name__ == "__main__":
    main()
