"""What the operator refuses, and in which words: a message names the argument, what was expected and what was found.

The pinned texts can be renewed with EXPECTTEST_ACCEPT=1; read what changed before you keep it. The functions have
test_arguments_of_functions.py.
"""

import re
import textwrap

import expecttest
import pytest
import torch

import torch_ctc_align  # noqa: F401

operator = torch.ops.ctc_align.forced_align


def message_of(function, *arguments, kind=ValueError, **options):
    """Returns the message of a call's error, without the name of the function, folded to lines of 100 characters."""
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    phrase, name, text = str(caught.value).rpartition(f"{function.__name__}: ")
    assert name
    assert phrase == "" or phrase.endswith(". ")  # torchaudio's
    text = phrase + text
    assert not re.search(r"\n|/|\.(h|hpp|cpp|cu|py)\b", text), text  # one line, no path of a file
    return textwrap.fill(text, 100)


def log_probs(B=2, T=5, C=4, **options):
    return torch.zeros(B, T, C, **options)


def targets(*rows, **options):
    return torch.tensor(rows or [[1, 2], [3, 1]], **options)


class OperatorTest(expecttest.TestCase):
    def refuse(self, expected, *arguments, **options):
        self.assertExpectedInline(message_of(operator, *arguments, **options), expected, skip=1)

    def refuse_everywhere(self, expected, *arguments, **options):
        """Where no value inside a tensor decides, the fake kernel refuses in the same words."""
        real = message_of(operator, *arguments, **options)
        on_meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments]
        assert real == message_of(operator, *on_meta, **options)
        self.assertExpectedInline(real, expected, skip=1)

    # Shapes, dtypes, devices, blank

    def test_shape_of_log_probs(self):
        self.refuse_everywhere("""log_probs must have shape (B, T, C), found (5, 4)""", torch.zeros(5, 4), targets())
        self.refuse_everywhere(
            """log_probs must have shape (B, T, C), found (2, 5, 4, 1)""", torch.zeros(2, 5, 4, 1), targets()
        )
        self.refuse_everywhere("""log_probs must have shape (B, T, C), found ()""", torch.zeros(()), targets())

    def test_dtype_of_log_probs(self):
        self.refuse_everywhere(
            """log_probs must be float16, bfloat16, float32 or float64, found int64""",
            log_probs(dtype=torch.int64),
            targets(),
        )
        self.refuse_everywhere(
            """log_probs must be float16, bfloat16, float32 or float64, found bool""",
            log_probs(dtype=torch.bool),
            targets(),
        )
        self.refuse_everywhere(
            """log_probs must be float16, bfloat16, float32 or float64, found complex64""",
            log_probs(dtype=torch.complex64),
            targets(),
        )

    @pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
    def test_dtypes_have_their_names(self):
        """They are as Python prints them, and as the fake kernel says them."""
        floats = ["float4_e2m1fn_x2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
        integers = ["int8", "int16", "uint8", "uint16", "uint32", "uint64"]
        for name in [*floats, "float8_e8m0fnu", *integers, "bool", "complex32", "complex64", "complex128"]:
            other = torch.empty(2, 5, 4, dtype=getattr(torch, name))
            expected = f"log_probs must be float16, bfloat16, float32 or float64, found {name}"
            assert message_of(operator, other, targets()) == expected
            assert message_of(operator, other.to("meta"), targets()) == expected
            expected = f"targets must be int32 or int64, found {name}"
            assert message_of(operator, log_probs(), other[:, 0]) == expected
            expected = f"input_lengths must be int32 or int64, found {name}"
            assert message_of(operator, log_probs(), targets(), other[:, 0, 0]) == expected
        exotic = torch.empty(2, 5, 4, dtype=torch.bits8)  # which has no numbers in it
        assert message_of(operator, exotic, targets()).endswith("found another dtype")

    def test_shape_of_targets(self):
        self.refuse_everywhere(
            """targets must have shape (B, L) with B = 2 as in log_probs, found (2,)""",
            log_probs(),
            torch.tensor([1, 2]),
        )
        self.refuse_everywhere(
            """targets must have shape (B, L) with B = 2 as in log_probs, found (3, 2)""",
            log_probs(),
            targets([1, 2], [1, 2], [1, 2]),
        )
        self.refuse_everywhere(
            """targets must have shape (B, L) with B = 2 as in log_probs, found (1, 2)""", log_probs(), targets([1, 2])
        )
        self.refuse_everywhere(
            """targets must have shape (B, L) with B = 0 as in log_probs, found (2, 2)""", log_probs(B=0), targets()
        )

    def test_dtype_of_targets(self):
        self.refuse_everywhere("""targets must be int32 or int64, found float32""", log_probs(), targets().float())
        self.refuse_everywhere("""targets must be int32 or int64, found int16""", log_probs(), targets().short())
        self.refuse_everywhere("""targets must be int32 or int64, found bool""", log_probs(), targets().bool())
        self.refuse_everywhere(
            """targets must be int32 or int64, found uint8""", log_probs(), targets().to(torch.uint8)
        )

    def test_shape_of_lengths(self):
        two, three = torch.tensor([5, 5]), torch.tensor([5, 5, 5])
        self.refuse_everywhere(
            """input_lengths must have shape (B,) = (2,), found (3,)""", log_probs(), targets(), three, None
        )
        self.refuse_everywhere(
            """input_lengths must have shape (B,) = (2,), found (2, 1)""", log_probs(), targets(), two[:, None], None
        )
        self.refuse_everywhere(
            """input_lengths must have shape (B,) = (2,), found ()""", log_probs(), targets(), torch.tensor(5), None
        )
        self.refuse_everywhere(
            """target_lengths must have shape (B,) = (2,), found (3,)""", log_probs(), targets(), None, three
        )
        self.refuse_everywhere(
            """target_lengths must have shape (B,) = (2,), found (1,)""", log_probs(), targets(), two, two[:1]
        )

    def test_dtype_of_lengths(self):
        lengths = torch.tensor([2, 2])
        self.refuse_everywhere(
            """input_lengths must be int32 or int64, found float32""", log_probs(), targets(), lengths.float(), None
        )
        self.refuse_everywhere(
            """input_lengths must be int32 or int64, found bool""", log_probs(), targets(), lengths.bool(), None
        )
        self.refuse_everywhere(
            """target_lengths must be int32 or int64, found int16""", log_probs(), targets(), None, lengths.short()
        )

    def test_device_of_the_others(self):
        lengths = torch.tensor([2, 2])
        self.refuse(
            """targets must be on the device of log_probs, expected cpu, found meta""",
            log_probs(),
            targets(device="meta"),
        )
        self.refuse(
            """targets must be on the device of log_probs, expected meta, found cpu""",
            log_probs(device="meta"),
            targets(),
        )
        self.refuse(
            """input_lengths must be on the device of log_probs, expected cpu, found meta""",
            log_probs(),
            targets(),
            lengths.to("meta"),
        )
        self.refuse(
            """target_lengths must be on the device of log_probs, expected cpu, found meta""",
            log_probs(),
            targets(),
            None,
            lengths.to("meta"),
        )

    def test_blank_is_a_class(self):
        self.refuse_everywhere(
            """blank must be a class of log_probs, expected 0 <= blank < C = 4, found -1""",
            log_probs(),
            targets(),
            blank=-1,
        )
        self.refuse_everywhere(
            """blank must be a class of log_probs, expected 0 <= blank < C = 4, found 4""",
            log_probs(),
            targets(),
            blank=4,
        )
        self.refuse_everywhere(
            """blank must be a class of log_probs, expected 0 <= blank < C = 4, found 1099511627776""",
            log_probs(),
            targets(),
            blank=2**40,
        )
        self.refuse_everywhere(
            """blank must be a class of log_probs, expected 0 <= blank < C = 0, found 0""", log_probs(C=0), targets()
        )
        self.refuse_everywhere(
            """blank must be a class of log_probs, expected 0 <= blank < C = 0, found 0""",
            torch.zeros(0, 0, 0),
            torch.zeros(0, 0, dtype=torch.int64),
        )

    # Values

    def test_a_label_is_a_class(self):
        self.refuse(
            """targets[1, 1] must be a class of log_probs, expected 0 <= label < C = 4, found 4""",
            log_probs(),
            targets([1, 2], [1, 4]),
        )
        self.refuse(
            """targets[0, 1] must be a class of log_probs, expected 0 <= label < C = 4, found -1""",
            log_probs(),
            targets([1, -1], [1, 2]),
        )
        self.refuse(
            """targets[0, 1] must be a class of log_probs, expected 0 <= label < C = 4, found -1""",
            log_probs(),
            targets([1, -1], [1, 2], dtype=torch.int32),
        )
        self.refuse(
            """targets[1, 0] must be a class of log_probs, expected 0 <= label < C = 4, found 4294967297""",
            log_probs(),
            targets([1, 2], [2**32 + 1, 2]),
        )
        self.refuse(
            """targets[1, 0] must be a class of log_probs, expected 0 <= label < C = 4, found -9223372036854775808""",
            log_probs(),
            targets([1, 2], [-(2**63), 2]),
        )
        self.refuse(
            """targets[0, 0] must be a class of log_probs, expected 0 <= label < C = 1, found 1""",
            log_probs(C=1),
            targets(),
        )

    def test_a_label_is_not_the_blank(self):
        self.refuse(
            """targets[0, 1] must not be the blank, expected a label other than 0, found 0""",
            log_probs(),
            targets([1, 0], [1, 2]),
        )
        self.refuse(
            """targets[0, 1] must not be the blank, expected a label other than 2, found 2""",
            log_probs(),
            targets([1, 2], [2, 1], dtype=torch.int32),
            blank=2,
        )

    def test_input_lengths_are_frames(self):
        self.refuse(
            """input_lengths[1] must be between 0 and T = 5, found 6""", log_probs(), targets(), torch.tensor([5, 6])
        )
        self.refuse(
            """input_lengths[0] must be between 0 and T = 5, found -1""", log_probs(), targets(), torch.tensor([-1, 5])
        )
        self.refuse(
            """input_lengths[1] must be between 0 and T = 5, found -1""",
            log_probs(),
            targets(),
            torch.tensor([5, -1], dtype=torch.int32),
        )
        self.refuse(
            """input_lengths[0] must be between 0 and T = 5, found 4294967301""",
            log_probs(),
            targets(),
            torch.tensor([2**32 + 5, 5]),
        )

    def test_target_lengths_are_labels(self):
        self.refuse(
            """target_lengths[1] must be between 0 and L = 2, found 3""",
            log_probs(),
            targets(),
            None,
            torch.tensor([2, 3]),
        )
        self.refuse(
            """target_lengths[0] must be between 0 and L = 2, found -1""",
            log_probs(),
            targets(),
            None,
            torch.tensor([-1, 2]),
        )
        self.refuse(
            """target_lengths[1] must be between 0 and L = 2, found -7""",
            log_probs(),
            targets(),
            None,
            torch.tensor([2, -7], dtype=torch.int32),
        )
        self.refuse(
            """target_lengths[0] must be between 0 and L = 2, found 4294967298""",
            log_probs(),
            targets(),
            None,
            torch.tensor([2**32 + 2, 2]),
        )

    def test_impossible_items_are_checked_too(self):
        """Even where no frame would ever use the label."""
        self.refuse(
            """targets[1, 1] must be a class of log_probs, expected 0 <= label < C = 4, found 9""",
            log_probs(T=0),
            targets([1, 2], [1, 9]),
        )
        self.refuse(
            """targets[1, 1] must be a class of log_probs, expected 0 <= label < C = 4, found 9""",
            log_probs(),
            targets([1, 2], [1, 9]),
            torch.tensor([5, 0]),
        )
        self.refuse(
            """input_lengths[1] must be between 0 and T = 0, found 1""", log_probs(T=0), targets(), torch.tensor([0, 1])
        )

    def test_the_first_bad_item_is_named(self):
        """Whatever the number of threads, and however many items are bad."""
        many = torch.randint(1, 4, (300, 40))
        many[257:, 33] = 4
        self.refuse(
            """targets[257, 33] must be a class of log_probs, expected 0 <= label < C = 4, found 4""",
            log_probs(300, 200),
            many,
        )
        lengths = torch.full((300,), 200)
        lengths[123:] = 201
        self.refuse(
            """input_lengths[123] must be between 0 and T = 200, found 201""", log_probs(300, 200), many, lengths
        )

    def test_an_error_leaves_no_trace(self):
        before = operator(log_probs(), targets())
        message_of(operator, log_probs(), targets([1, 2], [1, 4]))
        after = operator(log_probs(), targets())
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
