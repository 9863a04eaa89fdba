"""Measures how far a path that was found with float32 sums lies below the best total. Prints a page in two minutes.

    .venv/bin/python benchmarks/optimality.py > docs/measurements/optimality.md

Each item is aligned twice: as float32, and widened to float64, which is exact. The emissions along both paths are added
up in float64.
"""

import argparse

import torch
from machine import commit_and_date, processor_name
from page import table

import torch_ctc_align

CLASSES = 32
SIZES = [(500, 200), (1_500, 200), (5_000, 100), (15_000, 40), (50_000, 12)]  # frames, items
LABELS_PER_FRAME = (0.1, 0.4)
DEVIATIONS = (0.0, 0.01, 0.1, 1.0, 3.0)  # of normal logits, nats
CHUNK = 4  # items a call

PAGE = """\
# Below the best total

{date}, package {version} at {commit}, torch {torch}; made by
`.venv/bin/python benchmarks/optimality.py > docs/measurements/optimality.md`{arguments}. {processor}. The page
has no speeds: on another machine only the last bits of torch's `log_softmax` differ.

float32 emissions, {classes} classes, T frames, and a label every ten frames or two in five. Each item is aligned as
float32 and, widened exactly, as float64. "Below": items whose float32 path has a smaller total than their float64 path,
both added up in float64. "Largest gap": how much smaller, in nats; "of the total": divided by the size of the total.

- **logits of deviation s**: `log_softmax(s * randn)`, random targets. With s = 0 all paths have one total; with
  s = 0.01 the best path is better than many others by less than a float32 sum can hold.
- **sure of a path**, as a trained model is: `log_softmax(randn)`, with 8 added at one class of each frame, the target's
  labels among blanks.

{table}
"""


def make_arguments(deviation, items, frames, labels, generator):
    """deviation is that of the logits; None makes emissions that are sure of a path."""
    targets = torch.randint(1, CLASSES, (items, labels), generator=generator)
    logits = torch.randn(items, frames, CLASSES, generator=generator)
    if deviation is None:
        spoken = torch.linspace(0, frames - 1, labels + 2)[1:-1].long()
        heard = torch.zeros(items, frames, dtype=torch.int64)
        heard[:, spoken] = targets
        logits += 8 * torch.nn.functional.one_hot(heard, CLASSES)
    else:
        logits *= deviation
    return logits.log_softmax(-1), targets


def find_gaps(log_probs, targets):
    """How far each float32 path is below the float64 path, and the total of the latter (nats, float64)."""
    wide = log_probs.double()

    def totals(paths):
        return wide.gather(2, paths.unsqueeze(2)).sum((1, 2))

    operator = torch.ops.ctc_align.forced_align
    best = totals(operator(wide, targets)[0])
    return best - totals(operator(log_probs, targets)[0]), best


def measure(deviation, items, frames, labels):
    generator = torch.Generator().manual_seed(frames + labels)
    chunks = [
        find_gaps(*make_arguments(deviation, min(CHUNK, items - i), frames, labels, generator))
        for i in range(0, items, CHUNK)
    ]
    gaps, best = (torch.cat(column) for column in zip(*chunks, strict=True))
    return torch.where(gaps > best.abs() * 1e-13, gaps, 0), best  # the float64 totals are rounded too


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the items")
    arguments = parser.parse_args()
    rows = []
    for deviation in (*DEVIATIONS, None):
        for frames, items in SIZES:
            for share in LABELS_PER_FRAME:
                count, labels = max(1, items // 10) if arguments.quick else items, int(frames * share)
                gaps, best = measure(deviation, count, frames, labels)
                rows.append(
                    [
                        "sure of a path" if deviation is None else f"logits of deviation {deviation:g}",
                        f"{frames:,}",
                        f"{labels:,}",
                        f"{int((gaps > 0).sum())} of {count}",
                        f"{gaps.max():.1e}" if gaps.any() else "0",
                        f"{(gaps / best.abs()).max():.1e}" if gaps.any() else "0",
                        f"{best.mean():,.0f}",
                    ]
                )
    header = ["emissions", "T", "L", "below", "largest gap, nats", "of the total", "mean total"]
    page = PAGE.format(
        arguments=" with `--quick`" if arguments.quick else "",
        version=torch_ctc_align.__version__,
        processor=processor_name(),
        **commit_and_date(),
        torch=torch.__version__,
        classes=CLASSES,
        table=table(header, rows),
    )
    print(page, end="")


if __name__ == "__main__":
    main()
