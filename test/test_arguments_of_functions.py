"""What the functions refuse, and in which words. They have more to say than the operator: test_arguments.py.

The pinned texts can be renewed with EXPECTTEST_ACCEPT=1; read what changed before you keep it.
"""

import expecttest
import torch
from test_arguments import log_probs, message_of, operator, targets

import torch_ctc_align
from torch_ctc_align import ForcedAligner


class FunctionTest(expecttest.TestCase):
    def refuse(self, expected, *arguments, function=torch_ctc_align.forced_align, **options):
        self.assertExpectedInline(message_of(function, *arguments, **options), expected, skip=1)

    def test_too_few_frames(self):
        self.refuse(
            """\
targets length is too long for CTC. item 0 is too short for its target, expected T >= L + R = 2,
found T = 1 frames, L = 2 labels, R = 0 neighbouring repeats""",
            log_probs(T=1),
            targets(),
        )
        self.refuse(
            """\
targets length is too long for CTC. item 1 is too short for its target, expected T >= L + R = 3,
found T = 2 frames, L = 2 labels, R = 1 neighbouring repeats""",
            log_probs(T=3),
            targets([1, 2], [2, 2]),
            [3, 2],
        )
        self.refuse(
            """\
targets length is too long for CTC. item 1 is too short for its target, expected T >= L + R = 6,
found T = 5 frames, L = 4 labels, R = 2 neighbouring repeats""",
            log_probs(T=5),
            targets([1, 2, 1, 1], [2, 2, 1, 1]),
            None,
            [4, 4],
        )
        self.refuse(
            """\
targets length is too long for CTC. item 0 is too short for its target, expected T >= L + R = 2,
found T = 0 frames, L = 2 labels, R = 0 neighbouring repeats""",
            log_probs(T=0),
            targets(),
        )
        self.refuse(
            """\
targets length is too long for CTC. item 1 is too short for its target, expected T >= L + R = 1,
found T = 0 frames, L = 1 labels, R = 0 neighbouring repeats""",
            log_probs(T=0),
            targets(),
            None,
            torch.tensor([0, 1], dtype=torch.int32),
        )

    def test_padding_is_not_counted_as_repeats(self):
        self.refuse(
            """\
targets length is too long for CTC. item 1 is too short for its target, expected T >= L + R = 2,
found T = 1 frames, L = 2 labels, R = 0 neighbouring repeats""",
            log_probs(T=1),
            targets([1, 1], [2, 3]),
            None,
            [1, 2],
        )

    def test_no_finite_path(self):
        emission = log_probs()
        emission[1, 3] = torch.nan
        self.refuse(
            """\
item 1 has no path of finite score, expected one that meets no NaN and no infinity in log_probs,
found T = 5 frames, L = 2 labels, R = 0 neighbouring repeats""",
            emission,
            targets(),
        )
        emission = log_probs()
        emission[0, :, 1] = -torch.inf
        self.refuse(
            """\
item 0 has no path of finite score, expected one that meets no NaN and no infinity in log_probs,
found T = 4 frames, L = 2 labels, R = 0 neighbouring repeats""",
            emission,
            targets(),
            [4, 5],
            [2, 1],
        )

    def test_the_first_item_without_a_path_is_named(self):
        self.refuse(
            """\
targets length is too long for CTC. item 1 is too short for its target, expected T >= L + R = 3,
found T = 2 frames, L = 2 labels, R = 1 neighbouring repeats""",
            log_probs(B=4, T=3),
            targets([1, 2], [1, 1], [3, 3], [3, 3]),
            [3, 2, 1, 0],
        )

    def test_invalid_values_and_shapes(self):
        """As the operator, strict or not."""
        for strict in (True, False):
            options = {"strict": strict}
            self.refuse(
                """\
targets values must be less than the CTC dimension. targets[1, 1] must be a class of log_probs,
expected 0 <= label < C = 4, found 4""",
                log_probs(),
                targets([1, 2], [1, 4]),
                **options,
            )
            self.refuse(
                """input length mismatch. input_lengths[1] must be between 0 and T = 5, found 6""",
                log_probs(),
                targets(),
                [5, 6],
                **options,
            )
            self.refuse(
                """input_lengths must be 1-D (batch_size,). input_lengths must have shape (B,) = (2,), found (1,)""",
                log_probs(),
                targets(),
                [5],
                **options,
            )
            self.refuse(
                """\
targets must be 2-D (batch_size, target length,). targets must have shape (B, L) with B = 2 as in
log_probs, found (2,)""",
                log_probs(),
                torch.tensor([1, 2]),
                **options,
            )

    def test_what_is_not_a_tensor(self):
        """It is named by its type, and not printed: it may be long."""
        self.refuse(
            """targets must be a tensor of shape (B, L), found a list; use torch.as_tensor""",
            log_probs(),
            [[1, 2], [3, 1]],
            kind=TypeError,
        )
        self.refuse(
            """targets must be a tensor of shape (B, L), found a tuple; use torch.as_tensor""",
            log_probs(),
            ((1, 2), (3, 1)),
            kind=TypeError,
        )
        self.refuse(
            """targets must be a tensor of shape (B, L), found a numpy.ndarray; use torch.as_tensor""",
            log_probs(),
            targets().numpy(),
            kind=TypeError,
        )
        self.refuse(
            """targets must be a tensor of shape (B, L), found None; use torch.as_tensor""",
            log_probs(),
            None,
            kind=TypeError,
        )
        self.refuse(
            """log_probs must be a tensor of shape (B, T, C), found a numpy.ndarray; use torch.as_tensor""",
            log_probs(T=5000).numpy(),
            targets(),
            [5, 5],
            [2, 2],
            kind=TypeError,
        )
        self.refuse(
            """log_probs must be a tensor of shape (B, T, C), found a list; use torch.as_tensor""",
            log_probs().tolist(),
            targets().tolist(),
            kind=TypeError,
        )

    def test_lengths_are_lists_or_tensors(self):
        self.refuse(
            """\
input_lengths must be a tensor or a sequence of int, one for each item, found 20; pass [20]""",
            log_probs(),
            targets(),
            20,
            kind=TypeError,
        )
        self.refuse(
            """\
target_lengths must be a tensor or a sequence of int, one for each item, found 2; pass [2]""",
            log_probs(),
            targets(),
            None,
            targets().numpy()[0].max(),
            kind=TypeError,
        )
        self.refuse(
            """\
input_lengths must be a tensor or a sequence of int, one for each item, found a generator; pass a
list""",
            log_probs(),
            targets(),
            (length for length in (5, 5)),
            kind=TypeError,
        )
        self.refuse(
            """input_lengths must be a tensor or a sequence of int, one for each item, found a str; pass a list""",
            log_probs(),
            targets(),
            "55",
            kind=TypeError,
        )
        self.refuse(
            """input_lengths must be numbers of frames or labels, found ['5', None]""",
            log_probs(),
            targets(),
            ["5", None],
            kind=TypeError,
        )

    def test_blank_is_an_int(self):
        self.refuse(
            """blank must be an int, the index of a class, found '-'""",
            log_probs(),
            targets(),
            blank="-",
            kind=TypeError,
        )
        self.refuse(
            """blank must be an int, the index of a class, found 1.0""",
            log_probs(),
            targets(),
            blank=1.0,
            kind=TypeError,
        )
        self.refuse(
            """blank must be an int, the index of a class, found 1180591620717411303424""",
            log_probs(),
            targets(),
            blank=2**70,
            kind=TypeError,
        )
        self.refuse(
            """blank must be an int, the index of a class, found '-'""",
            "-",
            function=ForcedAligner,
            kind=TypeError,
        )

    def test_a_number_of_numpy_or_torch_may_be_the_blank(self):
        """Whatever else is wrong, it is not the blank."""
        for blank in (targets().numpy()[0, 0], torch.tensor(1)):
            assert operator(log_probs(), targets([2, 3], [3, 2]), blank=blank)[0].tolist() == [
                [2, 3, 3, 3, 3],
                [3, 2, 2, 2, 2],
            ]
            said = message_of(torch_ctc_align.forced_align, log_probs(), targets([2, 3], [3, 4]), blank=blank)
            assert said.startswith("targets values must be less than the CTC dimension.")

    def test_a_single_item(self):
        """Without the dimension of the batch."""
        self.refuse(
            """\
log_probs must be 3-D (batch_size, input length, num classes). log_probs must have shape (B, T, C),
found (5, 4); for a single item pass log_probs[None] and targets[None]""",
            log_probs()[0],
            targets()[0],
        )
        self.refuse(
            """\
log_probs must be 3-D (batch_size, input length, num classes). log_probs must have shape (B, T, C),
found (5, 4); for a single item pass log_probs[None]""",
            log_probs()[0],
            targets([1, 2]),
        )
        self.refuse(
            """\
targets must be 2-D (batch_size, target length,). targets must have shape (B, L) with B = 1 as in
log_probs, found (2,); for a single item pass targets[None]""",
            log_probs(B=1),
            targets()[0],
        )

    def test_frames_before_items(self):
        self.refuse(
            """\
The batch dimension for log_probs must be 1 at the current version. targets must have shape (B, L)
with B = 5 as in log_probs, found (2, 2); if log_probs are (T, B, C), pass log_probs.transpose(0, 1)""",
            log_probs().transpose(0, 1),
            targets(),
        )

    def test_padded_targets_without_their_lengths(self):
        self.refuse(
            """\
targets Tensor shouldn't contain blank index. targets[1, 1] must not be the blank, expected a label
other than 0, found 0; if this is padding, pass target_lengths""",
            log_probs(),
            targets([1, 2, 3], [1, 0, 0]),
        )
        self.refuse(
            """\
targets Tensor shouldn't contain blank index. targets[1, 1] must not be the blank, expected a label
other than 0, found 0""",
            log_probs(),
            targets([1, 2, 3], [1, 0, 3]),
        )
        self.refuse(
            """\
targets[0, 1] must be a class of log_probs, expected 0 <= label < C = 4, found -100; if this is
padding, pass target_lengths""",
            log_probs(),
            targets([1, -100, -100], [1, 2, 3]),
        )

    def test_float8(self):
        self.refuse(
            """\
log_probs must be float64, float32 or float16 (half) type. log_probs must be float16, bfloat16,
float32 or float64, found float8_e4m3fn""",
            log_probs().to(torch.float8_e4m3fn),
            targets(),
        )

    def test_posteriors_say_the_same(self):
        """In the words of their own names, without torchaudio's, which has no such function."""
        for function in (torch_ctc_align.posteriors, torch_ctc_align.class_posteriors):
            self.refuse(
                """targets must be a tensor of shape (B, L), found a list; use torch.as_tensor""",
                log_probs(),
                [[1]],
                function=function,
                kind=TypeError,
            )
            self.refuse(
                """\
input_lengths must be a tensor or a sequence of int, one for each item, found 5; pass [5]""",
                log_probs(),
                targets(),
                5,
                function=function,
                kind=TypeError,
            )
            self.refuse(
                """blank must be an int, the index of a class, found '-'""",
                log_probs(),
                targets(),
                blank="-",
                function=function,
                kind=TypeError,
            )
            self.refuse(
                """\
log_probs must have shape (B, T, C), found (5, 4); for a single item pass log_probs[None] and
targets[None]""",
                log_probs()[0],
                targets()[0],
                function=function,
            )
            self.refuse(
                """\
targets[1, 1] must not be the blank, expected a label other than 0, found 0; if this is padding,
pass target_lengths""",
                log_probs(),
                targets([1, 2], [1, 0]),
                function=function,
            )

    def test_helpers_refuse_what_is_not_a_tensor(self):
        paths, scores = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5)
        for function, arguments, expected in (
            (
                torch_ctc_align.token_spans,
                (paths.tolist(), scores, targets()),
                "paths must be a tensor of shape (B, T), found a list",
            ),
            (
                torch_ctc_align.token_spans,
                (paths, scores.numpy(), targets()),
                "scores must be a tensor of shape (B, T), found a numpy.ndarray",
            ),
            (
                torch_ctc_align.token_indices,
                (paths, [[1], [1]]),
                "targets must be a tensor of shape (B, L), found a list",
            ),
            (torch_ctc_align.min_frames, ([[1], [1]],), "targets must be a tensor of shape (B, L), found a list"),
            (
                torch_ctc_align.merge_tokens,
                (paths[0].tolist(), scores[0]),
                "tokens must be a tensor of shape (T,), found a list",
            ),
            (
                torch_ctc_align.merge_tokens,
                (paths[0], scores[0].tolist()),
                "scores must be a tensor of shape (T,), found a list",
            ),
        ):
            assert message_of(function, *arguments, kind=TypeError) == f"{expected}; use torch.as_tensor"

    def test_min_frames(self):
        self.refuse("""targets must have shape (B, L), found (2,)""", targets()[0], function=torch_ctc_align.min_frames)
        self.refuse(
            """target_lengths must have shape (B,) = (2,), found (1,)""",
            targets(),
            [1],
            function=torch_ctc_align.min_frames,
        )
        self.refuse(
            """target_lengths must be int32 or int64, found float32""",
            targets(),
            [1.0, 2.0],
            function=torch_ctc_align.min_frames,
        )
        self.refuse(
            """\
target_lengths must be a tensor or a sequence of int, one for each item, found 2; pass [2]""",
            targets(),
            2,
            function=torch_ctc_align.min_frames,
            kind=TypeError,
        )

    def test_token_indices(self):
        paths = torch.zeros(2, 5, dtype=torch.int64)
        self.refuse(
            """paths must have shape (B, T), found (5,)""", paths[0], targets(), function=torch_ctc_align.token_indices
        )
        self.refuse(
            """targets must have shape (B, L) with B = 2 as in paths, found (2,)""",
            paths,
            targets()[0],
            function=torch_ctc_align.token_indices,
        )
        self.refuse(
            """\
paths[1] does not spell targets[1] with blank = 0; pass the blank and the targets that were aligned""",
            torch.tensor([[1, 2, 0], [3, 0, 2]]),
            targets(),
            function=torch_ctc_align.token_indices,
        )

    def test_lengths_are_whole_numbers(self):
        """Nothing is rounded in silence: a length of 4.5 frames, or 4.0, is a mistake of the caller."""
        align = torch_ctc_align.forced_align
        for lengths in ([4.5, 5], [4.0, 5.0], torch.tensor([4.0, 5.0])):
            assert message_of(align, log_probs(), targets(), lengths).startswith("input_lengths")
            assert message_of(align, log_probs(), targets(), None, lengths).startswith("target_lengths")

    def test_merge_tokens(self):
        self.refuse(
            """\
`tokens` and `scores` must be 1D Tensor. tokens and scores must have shape (T,), found (1, 3) and
(1, 3)""",
            torch.zeros(1, 3),
            torch.zeros(1, 3),
            function=torch_ctc_align.merge_tokens,
        )
        self.refuse(
            """\
`tokens` and `scores` must be the same length. tokens and scores must have the same length, found 3
and 4""",
            torch.zeros(3),
            torch.zeros(4),
            function=torch_ctc_align.merge_tokens,
        )

    def test_token_spans(self):
        paths, scores = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5)
        self.refuse(
            """paths and scores must have the same shape (B, T), found (5,) and (5,)""",
            paths[0],
            scores[0],
            targets(),
            function=torch_ctc_align.token_spans,
        )
        self.refuse(
            """paths and scores must have the same shape (B, T), found (2, 5) and (2, 4)""",
            paths,
            scores[:, :4],
            targets(),
            function=torch_ctc_align.token_spans,
        )
        self.refuse(
            """targets must have shape (B, L) with B = 2 as in paths, found (1, 2)""",
            paths,
            scores,
            targets([1, 2]),
            function=torch_ctc_align.token_spans,
        )
        self.refuse(
            """targets must have shape (B, L) with B = 2 as in paths, found (2,)""",
            paths,
            scores,
            targets()[0],
            function=torch_ctc_align.token_spans,
        )


def test_lengths_in_lists_go_where_log_probs_are_whatever_the_default_device_is():
    expected = torch_ctc_align.forced_align(log_probs(), targets(), torch.tensor([4, 5]), torch.tensor([2, 1]))
    cases = log_probs(), targets(), log_probs(B=0), targets(device="cpu")[:0]
    torch.set_default_device("meta")
    try:
        found = torch_ctc_align.forced_align(*cases[:2], [4, 5], [2, 1])
        none = torch_ctc_align.forced_align(*cases[2:], [], [])
        frames = torch_ctc_align.min_frames(cases[1], [2, 1])
        alignment = ForcedAligner()(*cases[:2], [4, 5], [2, 1])
    finally:
        torch.set_default_device(None)
    for x, y in zip(found, expected, strict=True):
        assert x.device.type == "cpu"
        assert torch.equal(x, y)
    assert none[0].shape == (0, 5)
    assert frames.tolist() == [2, 1]
    assert torch.equal(alignment.paths, expected[0])
    assert alignment.token_indices.tolist() == [[0, 1, 1, 1, -1], [0, 0, 0, 0, 0]]
    assert alignment.durations.tolist() == [[1, 3], [5, 0]]
