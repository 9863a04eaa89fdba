#!/usr/bin/env python3
"""Trains a character CTC model on real speech, then sharpens its alignments with the aligner inside the step.

    python examples/train_ctc.py

First ctc_loss, which leaves peaky posteriors: the model says a letter in one frame and the blank in all frames around
it, so a word seems to begin late and to end early. Then Viterbi training: every step aligns the batch with the model's
present output, and the classes on the paths are the targets of an ordinary cross-entropy. This alone would keep the
peaks. So the posteriors are divided by the classes' priors, raised to a power, before the alignment: the blank, which
the model says most often, costs the most. (Huang et al. 2024, "Less Peaky and More Accurate CTC Forced Alignment by
Label Priors", arXiv:2406.02560, divide by priors inside ctc_loss; here this happens inside the alignment.)

Prints a table and draws a picture: how far the words' borders on held-out clips lie from those of pocketsphinx,
before and after. A run that was interrupted continues when it is started again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import speech_data
import torch
import torch.nn.functional as F
from speech_data import ALPHABET, BLANK, CLIPS, FEATURES, INK, MELS, SECONDS_PER_FRAME, Batch, Clip, InputError
from torch import Tensor, nn

from torch_ctc_align import ForcedAligner, ctc_loss

FRAMES_PER_BATCH = 2500  # padding included
IGNORED = -100  # the class that nll_loss leaves out

LOSSES = {"ours": ctc_loss, "torch": F.ctc_loss}  # the same arguments
ALIGNER = ForcedAligner(BLANK)  # marks an item without a path instead of raising, since a graph cannot read values


@dataclass
class Settings:
    """The values that decide the result; a checkpoint belongs to one set of them."""

    seed: int = 0
    fold: int = 0
    width: int = 224
    blocks: int = 5
    ctc_epochs: int = 28
    ctc_rate: float = 2.5e-3
    refine_epochs: int = 8
    refine_rate: float = 2e-3
    power: float = 0.75  # of the priors
    loss: str = "ours"


QUICK = Settings(width=64, blocks=2, ctc_epochs=300, ctc_rate=5e-3, refine_epochs=20, refine_rate=2e-3)


# The model ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Every frame reads itself and four neighbours, some frames apart; the result is added to the input.

    This is a convolution over time, written as a linear layer over five shifted copies: torch.compile (2.13) makes
    another graph for every length if it compiles the gradient of Conv1d.
    """

    def __init__(self, width: int, distance: int):
        super().__init__()
        self.distance = distance
        self.norm = nn.LayerNorm(width)
        self.gather = nn.Linear(5 * width, width)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, in_use: Tensor) -> Tensor:
        reach = 2 * self.distance
        padded = F.pad(self.norm(x) * in_use, (0, 0, reach, reach))
        neighbours = [padded[:, start : start + x.shape[1]] for start in range(0, 2 * reach + 1, self.distance)]
        return x + self.dropout(self.mix(F.gelu(self.gather(torch.cat(neighbours, dim=-1)))))


class Recogniser(nn.Module):
    """Features (B, T, FEATURES) to log-probabilities (B, T, C) of letters.

    The output for a clip does not depend on the padding: neighbours past the length are zeros.
    """

    def __init__(self, width: int, blocks: int):
        super().__init__()
        self.first = nn.Linear(FEATURES, width)
        self.blocks = nn.ModuleList([Block(width, 1 + i % 4) for i in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, len(ALPHABET))

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        x = F.gelu(self.first(features))
        in_use = before(frames, x)[:, :, None].to(x.dtype)
        for block in self.blocks:
            x = block(x, in_use)
        return self.last(self.norm(x)).log_softmax(-1)


def before(lengths: Tensor, x: Tensor) -> Tensor:
    """(B, T) bool for x (B, T, ...): whether the frame lies before the item's length."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


# The two training steps -----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    loss: Tensor
    posteriors: Tensor  # (C,) summed over frames; the priors come from these
    marked: Tensor  # the number of items without a path


def ctc_step(model: nn.Module, batch: Batch, loss: str) -> Step:
    """All paths that spell the targets. A graph can contain our loss; torch's reads values to size its work."""
    log_probs = model(batch.features, batch.frames)
    targets = batch.targets.clamp(min=0)
    total = LOSSES[loss](log_probs.transpose(0, 1), targets, batch.frames, batch.target_lengths, BLANK, "sum")
    in_use = before(batch.frames, log_probs)
    posteriors = (log_probs.detach().exp() * in_use[:, :, None]).sum((0, 1))
    return Step(total / batch.target_lengths.sum(), posteriors, torch.zeros((), dtype=torch.int64))


def refine_step(model: nn.Module, batch: Batch, log_priors: Tensor, power: float) -> Step:
    """The best path of each item under the present model. It compiles into one graph for batches of every shape."""
    log_probs = model(batch.features, batch.frames)

    # The model's best path, with common classes made more expensive than rare ones. A target has no gradient.
    alignment = ALIGNER((log_probs - power * log_priors).detach(), batch.targets, batch.frames, batch.target_lengths)

    # The targets are its classes, except past the length and in an item without a path, whose classes are -1.
    in_use = before(batch.frames, log_probs) & alignment.aligned[:, None]
    classes = torch.where(in_use, alignment.paths, IGNORED)
    loss = F.nll_loss(log_probs.mT, classes, ignore_index=IGNORED, reduction="sum") / in_use.sum().clamp(min=1)

    posteriors = (log_probs.detach().exp() * in_use[:, :, None]).sum((0, 1))
    return Step(loss, posteriors, (~alignment.aligned).sum())


def mask_features(features: Tensor, frames: Tensor) -> Tensor:
    """Hides two bands of mel channels and two spans of time of every clip (Park et al. 2019, SpecAugment)."""

    def hide(extents: Tensor, longest: Tensor, places: int) -> Tensor:
        widths = torch.rand(len(features), 1) * longest
        starts = torch.rand(len(features), 1) * (extents - widths)
        place = torch.arange(places)
        return (place >= starts) & (place < starts + widths)

    for _ in range(2):
        mels = hide(torch.tensor(MELS), torch.tensor(12), MELS).repeat(1, FEATURES // MELS)
        times = hide(frames[:, None], frames[:, None].clamp(max=150) / 10, features.shape[1])
        features = features.masked_fill(mels[:, None, :] | times[:, :, None], 0)
    return features


# Training -------------------------------------------------------------------------------------------------------------


def train(clips: Sequence[Clip], settings: Settings, path: Path, device: str = "cpu") -> dict:
    """Trains, continuing from the checkpoint if there is one, and returns the last checkpoint's state.

    The result is the same with and without an interruption: the number of an epoch decides everything random in it.
    """
    state = speech_data.load_checkpoint(path, vars(settings) | {"clips": len(clips)})
    torch.manual_seed(settings.seed)
    model = Recogniser(settings.width, settings.blocks).to(device)
    epochs = settings.ctc_epochs + settings.refine_epochs
    if state is None:
        state = {"settings": vars(settings) | {"clips": len(clips)}, "epoch": 0, "losses": [], "marked": 0}
        state["log_priors"] = torch.zeros(len(ALPHABET))
    elif state["epoch"] < epochs:
        print(f"continuing {path} after {state['epoch']} of {epochs} epochs", file=sys.stderr)
    if "model" in state:
        model.load_state_dict(state["model"])

    dataset = speech_data.SpeechDataset(clips)
    sizes = [len(clip.features) for clip in clips]
    loader = speech_data.make_loader(dataset, speech_data.collate, sizes, FRAMES_PER_BATCH, settings.seed)
    compiled_step = torch.compile(refine_step, fullgraph=True, dynamic=True)
    optimizer = torch.optim.AdamW(model.parameters())

    for epoch in range(state["epoch"], epochs):
        refining = epoch >= settings.ctc_epochs
        phase, start, length, peak = (
            ("refining", settings.ctc_epochs, settings.refine_epochs, settings.refine_rate)
            if refining
            else ("ctc_loss", 0, settings.ctc_epochs, settings.ctc_rate)
        )
        if epoch == start:  # each phase has an optimizer of its own
            optimizer = torch.optim.AdamW(model.parameters())
        elif "optimizer" in state and epoch == state["epoch"]:
            optimizer.load_state_dict(state["optimizer"])
        torch.manual_seed(1_000_003 * (settings.seed + 1) + epoch)
        loader.batch_sampler.epoch = epoch
        model.train()

        losses, posteriors = [], torch.zeros(len(ALPHABET))
        began, batches = time.perf_counter(), len(loader)
        for number, batch in enumerate(speech_data.show_progress(loader, f"{phase} {epoch + 1 - start:2}/{length}")):
            batch = batch._replace(features=mask_features(batch.features, batch.frames))
            batch = Batch(*(tensor.to(device) for tensor in batch))
            if refining:
                step = compiled_step(model, batch, state["log_priors"].to(device), settings.power)
            else:
                step = ctc_step(model, batch, settings.loss)
            for group in optimizer.param_groups:
                group["lr"] = speech_data.learning_rate(peak, (epoch - start + number / batches) / length)
            optimizer.zero_grad()
            step.loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            losses.append(step.loss.item())
            posteriors += step.posteriors.cpu()
            state["marked"] += int(step.marked)

        state["losses"].append(sum(losses) / len(losses))
        state["log_priors"] = (posteriors / posteriors.sum()).log()
        state |= {"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        if epoch + 1 == settings.ctc_epochs:
            state["before"] = {name: value.clone() for name, value in model.state_dict().items()}
            state["log_priors_before"] = state["log_priors"]
        speech_data.save_checkpoint(path, state)
        if epoch + 1 - start in (1, length) or (epoch + 1 - start) % 5 == 0:
            print(
                f"{phase} epoch {epoch + 1 - start:2}/{length}: loss {state['losses'][-1]:.3f}, blank's prior "
                f"{state['log_priors'][BLANK].exp():.2f}, {time.perf_counter() - began:.1f} s"
            )
    return state


def load_model(weights: dict, settings: dict) -> Recogniser:
    model = Recogniser(settings["width"], settings["blocks"])
    model.load_state_dict(weights)
    return model.eval()


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass
class Measures:
    error_rate: float  # of characters, the best class of every frame
    blank_share: float  # of frames on the paths
    starts: Tensor  # seconds after the reference, of all words but the first ones of their clips
    ends: Tensor  # the same for the ends of all words but the last ones

    @property
    def errors(self) -> Tensor:
        return torch.cat([self.starts, self.ends]).abs()


def edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first):
        diagonal, row[0] = row[0], i + 1
        for j, b in enumerate(second):
            diagonal, row[j + 1] = row[j + 1], min(row[j] + 1, row[j + 1] + 1, diagonal + (a != b))
    return row[-1]


class Found(NamedTuple):
    log_probs: Tensor  # (T, C)
    path: Tensor  # (T,)
    words: list[tuple[float, float]]  # start and end, s


@torch.no_grad()
def align_clip(model: Recogniser, clip: Clip, log_priors: Tensor | float = 0.0) -> Found:
    """A word begins with its first letter and ends with its last one."""
    log_probs = model(clip.features[None], torch.tensor([len(clip.features)]))
    alignment = ALIGNER(log_probs - log_priors, clip.targets[None])
    starts, ends, _ = alignment.spans
    words, token = [], 0
    for word in clip.words:
        borders = torch.stack([starts[0, token], ends[0, token + len(word) - 1]])
        words.append(tuple(((borders - 0.5) * SECONDS_PER_FRAME).tolist()))
        token += len(word) + 1
    return Found(log_probs[0], alignment.paths[0], words)


def measure(
    model: Recogniser, clips: Sequence[Clip], reference: Sequence, log_priors: Tensor | float = 0.0
) -> Measures:
    """The numbers of the table for held-out clips."""
    mistakes = characters = blanks = frames = 0
    starts, ends = [], []
    for clip, theirs in zip(clips, reference, strict=True):
        found = align_clip(model, clip, log_priors)
        heard = found.log_probs.argmax(-1).unique_consecutive().tolist()
        mistakes += edit_distance([c for c in heard if c != BLANK], clip.targets.tolist())
        characters += len(clip.targets)
        blanks += int((found.path == BLANK).sum())
        frames += len(found.path)
        # In two clips of three pocketsphinx hears no silence before the first word, so only inner borders are compared.
        if theirs is not None:
            starts += [ours[0] - other[0] for ours, other in zip(found.words[1:], theirs[1:], strict=True)]
            ends += [ours[1] - other[1] for ours, other in zip(found.words[:-1], theirs[:-1], strict=True)]
    return Measures(mistakes / characters, blanks / frames, torch.tensor(starts), torch.tensor(ends))


def print_measures(columns: dict[str, Measures]) -> None:
    def milliseconds(seconds: Tensor, sign: str = "") -> str:
        return f"{1000 * seconds.median():{sign}.0f} ms"

    rows = [
        ["character error rate", *(f"{100 * m.error_rate:.1f} %" for m in columns.values())],
        ["blanks on the paths", *(f"{100 * m.blank_share:.1f} %" for m in columns.values())],
    ]
    if all(len(m.errors) for m in columns.values()):
        rows += [
            ["word borders, mean error", *(f"{1000 * m.errors.mean():.1f} ms" for m in columns.values())],
            ["              median error", *(milliseconds(m.errors) for m in columns.values())],
            [
                "              within 50 ms",
                *(f"{100 * (m.errors <= 0.05).float().mean():.1f} %" for m in columns.values()),
            ],
            ["words start, median", *(milliseconds(m.starts, "+") for m in columns.values())],
            ["words end, median", *(milliseconds(m.ends, "+") for m in columns.values())],
        ]
    speech_data.print_table(list(columns), rows)


def draw_picture(path: Path, columns: dict[str, Measures], clip: Clip, theirs, before: Found, after: Found) -> None:
    """The distribution of the borders' errors, and the model's output for one held-out clip."""
    plt = speech_data.load_pyplot()
    accent, colors = "#d9480f", ("#829ab1", "#d9480f", "#1f6f8b")
    figure, (top, *below) = plt.subplots(3, 1, figsize=(8, 8.4), height_ratios=[1, 1.25, 1.25], layout="constrained")

    limit = 150  # ms
    for (name, measures), color in zip(columns.items(), colors, strict=False):
        errors = 1000 * measures.errors.sort().values
        top.step(errors, 100 * (torch.arange(len(errors)) + 1) / max(len(errors), 1), color=color, label=name)
    top.set(xlim=(0, limit), ylim=(0, 100), xlabel="at most so far from pocketsphinx (ms)", ylabel="word borders (%)")
    top.axvline(50, color=INK, linewidth=0.5, linestyle=":")
    top.legend(loc="lower right", frameon=False)

    # Rows: the classes of the clip in the order in which they come, the blank last.
    classes = [*dict.fromkeys(clip.targets.tolist()), BLANK]
    row_of = {c: row for row, c in enumerate(classes)}
    for axes, found, name in zip(below, (before, after), list(columns)[:: len(columns) - 1], strict=True):
        frames = len(found.path)
        middles = torch.arange(frames) * SECONDS_PER_FRAME
        extent = ((-0.5) * SECONDS_PER_FRAME, (frames - 0.5) * SECONDS_PER_FRAME, len(classes) - 0.5, -0.5)
        image = axes.imshow(
            found.log_probs[:, classes].exp().T, aspect="auto", interpolation="nearest", cmap="Blues",
            vmin=0, vmax=1, extent=extent,
        )  # fmt: skip
        rows = [row_of[c] for c in found.path.tolist()]
        axes.plot(middles, rows, ".", color=accent, markersize=3.4, markeredgewidth=0, label="path")
        for number, border in enumerate(sorted({border for word in theirs or [] for border in word})):
            label = None if number else "words' borders, pocketsphinx"
            axes.axvline(border, color=INK, linewidth=0.6, linestyle="--", label=label)
        axes.set_yticks(range(len(classes)), ["blank" if c == BLANK else ALPHABET[c] for c in classes])
        axes.tick_params(axis="y", length=0, labelsize=7)
        axes.set(xlabel="time (s)", ylabel="class", title=f'{name}: "{" ".join(clip.words)}"')
        axes.title.set_fontsize(8.5)
        figure.colorbar(image, ax=axes, label="probability", pad=0.01, aspect=30)
    for axes in (top, *below):
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = below[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=2, loc="outside lower center")
    figure.savefig(path, dpi=110)
    plt.close(figure)


# The command ----------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = speech_data.make_parser("Trains a character CTC model, then sharpens its alignments.", "a small model")
    for name, what in (
        ("seed", "of everything random"),
        ("fold", "which sixth of the texts is held out, 0 to 5"),
        ("ctc_epochs", "epochs with ctc_loss"),
        ("refine_epochs", "epochs of Viterbi training"),
    ):
        default = getattr(Settings, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{what} (default: {default})")
    parser.add_argument("--loss", choices=LOSSES, help=f"whose ctc_loss (default: {Settings.loss})")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="to train on (default: %(default)s)")
    parser.add_argument("--power", type=float, help=f"of the priors; 0: none (default: {Settings.power})")
    parser.add_argument("--no-reference", action="store_true", help="compare with nothing; needs no pocketsphinx")
    return parser.parse_args()


def make_settings(arguments: argparse.Namespace) -> Settings:
    given = {name: getattr(arguments, name, None) for name in vars(Settings())}
    start = QUICK if arguments.quick else Settings()
    return Settings(**(vars(start) | {name: value for name, value in given.items() if value is not None}))


def read_data(data: Path | None, quick: bool, fold: int) -> tuple[list[Clip], list[Clip]]:
    """Clips to train on, and held-out ones."""
    if quick:
        clips = speech_data.read_corpus(data or CLIPS)
        return clips, clips
    clips, held_out = speech_data.split(speech_data.read_corpus(data or speech_data.fetch_prompts()), fold)
    if len(clips) < 2 or not held_out:
        raise InputError(
            f"{len(clips)} clips to train on and {len(held_out)} held out are too few, or try another --fold"
        )
    return clips, held_out


def describe(clips: Sequence[Clip]) -> str:
    words = sum(len(clip.words) for clip in clips)
    return f"{len(clips)} clips, {sum(clip.seconds for clip in clips) / 60:.1f} min, {words} words"


def main() -> None:
    arguments = parse_arguments()
    settings = make_settings(arguments)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here; leave out --device")
    path = arguments.out / ("quick_ctc.pt" if arguments.quick else "train_ctc.pt")
    if arguments.quick:
        torch.set_num_threads(1)  # two would spend more time waiting than working
    if arguments.restart:
        path.unlink(missing_ok=True)

    clips, held_out = read_data(arguments.data, arguments.quick, settings.fold)
    size = sum(p.numel() for p in Recogniser(settings.width, settings.blocks).parameters())
    print(f"training on {describe(clips)}; held out: {describe(held_out)}; {size / 1e6:.1f} M parameters")
    began = time.perf_counter()
    state = train(clips, settings, path, arguments.device)
    print(f"trained in {time.perf_counter() - began:.0f} s\n")

    before = load_model(state["before"], state["settings"])
    after = load_model(state["model"], state["settings"])
    priors = settings.power * state["log_priors_before"]

    def measure_all(clips: Sequence[Clip]) -> tuple[dict[str, Measures], list]:
        unknown = arguments.no_reference or arguments.quick
        reference = [None] * len(clips) if unknown else speech_data.find_reference_borders(clips)
        return {
            "ctc_loss": measure(before, clips, reference),
            "+ priors to align": measure(before, clips, reference, priors),
            "refined": measure(after, clips, reference),
        }, reference

    columns, reference = measure_all(held_out)
    known = sum(theirs is not None for theirs in reference)
    print("clips it was trained on (--quick)" if arguments.quick else "held-out clips", end="")
    print(f"; {len(columns['refined'].errors)} borders of {known} clips compared with pocketsphinx" if known else "")
    print_measures(columns)
    print(f"\nitems without a path, masked while refining: {state['marked']}")
    if arguments.data is None and not arguments.quick:
        print("\nanother speaker: the two clips in examples/data")
        print_measures(measure_all(speech_data.read_corpus(CLIPS))[0])

    written = [path]
    if not arguments.no_picture:
        # A clip of about three seconds shows well.
        number = min(range(len(held_out)), key=lambda i: (reference[i] is None, abs(held_out[i].seconds - 3)))
        clip = held_out[number]
        written.append(path.with_suffix(".png"))
        draw_picture(written[-1], columns, clip, reference[number], align_clip(before, clip), align_clip(after, clip))
    print("\nwrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    speech_data.run("train_ctc", main)
