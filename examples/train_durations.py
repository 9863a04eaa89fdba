#!/usr/bin/env python3
"""Trains a duration predictor, as a speech synthesiser needs one, on durations that the aligner has found.

    python examples/train_durations.py

The model of train_ctc.py (trained first, if there is none) aligns every clip with its letters. The blanks are divided
among their neighbours, so an utterance's durations add up to its frames. A small network then learns to predict the
durations from the letters alone. Prints a table and draws a picture of held-out utterances.

A run that was interrupted continues when it is started again.
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
import train_ctc
from speech_data import ALPHABET, SECONDS_PER_FRAME, Clip
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from train_ctc import ALIGNER, Recogniser, before

LETTERS_PER_BATCH = 1500  # padding included


@dataclass
class Settings:
    """The values that decide the result; a checkpoint belongs to one set of them, and to one aligner."""

    seed: int = 0
    fold: int = 0
    width: int = 128
    layers: int = 4
    epochs: int = 40
    rate: float = 2e-3


QUICK = Settings(width=32, layers=2, epochs=30)


# Durations from the aligner -----------------------------------------------------------------------------------------


class Utterance(NamedTuple):
    targets: Tensor  # (L,)
    durations: Tensor  # (L,) frames, each at least 1; their sum is the length of the clip


@torch.no_grad()
def find_durations(model: Recogniser, clips: Sequence[Clip]) -> tuple[list[Utterance], int]:
    """The utterances, and the number of clips without a path, which are left out."""
    sizes = [len(clip.features) for clip in clips]
    dataset = speech_data.SpeechDataset(clips)
    loader = speech_data.make_loader(dataset, speech_data.collate, sizes, train_ctc.FRAMES_PER_BATCH, seed=0)
    found: dict[int, Utterance] = {}
    for batch in speech_data.show_progress(loader, "aligning"):
        log_probs = model(batch.features, batch.frames)
        alignment = ALIGNER(log_probs, batch.targets, batch.frames, batch.target_lengths)  # blanks are split
        assert torch.equal(alignment.durations.sum(1)[alignment.aligned], batch.frames[alignment.aligned])
        for item in alignment.aligned.nonzero().flatten().tolist():
            number, length = int(batch.clips[item]), int(batch.target_lengths[item])
            targets, durations = batch.targets[item, :length], alignment.durations[item, :length]
            found[number] = Utterance(targets.clone(), durations.clone())
    return [found[number] for number in sorted(found)], len(clips) - len(found)


# The predictor --------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    targets: Tensor  # (B, L); 0 past the length
    lengths: Tensor  # (B,)
    durations: Tensor  # (B, L); 1 past the length, which has a logarithm


def collate(items: list[Utterance]) -> Batch:
    return Batch(
        pad_sequence([item.targets for item in items], batch_first=True),
        torch.tensor([len(item.targets) for item in items]),
        pad_sequence([item.durations for item in items], batch_first=True, padding_value=1),
    )


class DurationPredictor(nn.Module):
    """Letters (B, L) to the logarithm of their durations in frames (B, L): an embedding and convolutions."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.convolutions = nn.ModuleList([nn.Conv1d(width, width, 5, padding=2) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(layers)])
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(width, 1)

    def forward(self, targets: Tensor, lengths: Tensor) -> Tensor:
        x = self.embedding(targets)
        in_use = before(lengths, x)[:, :, None].to(x.dtype)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = x + self.dropout(F.gelu(convolution((norm(x) * in_use).mT)).mT)
        return self.last(x)[:, :, 0]


def duration_loss(predicted: Tensor, batch: Batch) -> Tensor:
    """Mean over letters, not over padding, of the squared error of log durations."""
    errors = (predicted - batch.durations.log()).square()
    in_use = before(batch.lengths, predicted)
    return torch.where(in_use, errors, 0).sum() / in_use.sum()


def train(utterances: Sequence[Utterance], settings: dict, path: Path) -> dict:
    """Trains, continuing from the checkpoint if there is one; an interruption does not change the result."""
    state = speech_data.load_checkpoint(path, settings)
    torch.manual_seed(settings["seed"])
    model = DurationPredictor(settings["width"], settings["layers"])
    optimizer = torch.optim.AdamW(model.parameters())
    if state is None:
        with torch.no_grad():  # begin with the mean, so that the first epochs do not search for it
            model.last.bias.fill_(torch.cat([u.durations for u in utterances]).log().mean())
        untrained = {name: value.clone() for name, value in model.state_dict().items()}
        state = {"settings": settings, "epoch": 0, "losses": [], "untrained": untrained, "model": untrained}
    else:
        if state["epoch"] < settings["epochs"]:
            print(f"continuing {path} after {state['epoch']} of {settings['epochs']} epochs", file=sys.stderr)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    sizes = [len(utterance.targets) for utterance in utterances]
    loader = speech_data.make_loader(list(utterances), collate, sizes, LETTERS_PER_BATCH, settings["seed"])
    epochs = range(state["epoch"], settings["epochs"])
    for epoch in speech_data.show_progress(epochs, "learning durations"):
        torch.manual_seed(1_000_003 * (settings["seed"] + 1) + epoch)
        loader.batch_sampler.epoch = epoch
        model.train()
        losses, batches = [], len(loader)
        for number, batch in enumerate(loader):
            loss = duration_loss(model(batch.targets, batch.lengths), batch)
            for group in optimizer.param_groups:
                progress = (epoch + number / batches) / settings["epochs"]
                group["lr"] = speech_data.learning_rate(settings["rate"], progress)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        state["losses"].append(sum(losses) / len(losses))
        state |= {"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        speech_data.save_checkpoint(path, state)
    return state


# Measuring ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(weights: dict, settings: dict, utterances: Sequence[Utterance]) -> list[Tensor]:
    """Durations in frames, (L,) each, not rounded."""
    model = DurationPredictor(settings["width"], settings["layers"])
    model.load_state_dict(weights)
    model.eval()
    return [model(u.targets[None], torch.tensor([len(u.targets)]))[0].exp() for u in utterances]


def mean_durations(utterances: Sequence[Utterance]) -> Tensor:
    """(C,) the geometric mean of each letter's durations: the best prediction from the letter alone."""
    targets = torch.cat([u.targets for u in utterances])
    logs = torch.cat([u.durations for u in utterances]).log()
    sums = torch.zeros(len(ALPHABET)).index_add(0, targets, logs)
    counts = torch.bincount(targets, minlength=len(ALPHABET))
    return torch.where(counts > 0, sums / counts.clamp(min=1), logs.mean()).exp()


def print_measures(columns: dict[str, list[Tensor]], utterances: Sequence[Utterance]) -> None:
    truth = torch.cat([u.durations for u in utterances])
    totals = torch.stack([u.durations.sum() for u in utterances])
    rows = [
        [label] for label in ("error of a letter, mean", "log duration, mean square error", "error of a length, mean")
    ]
    for predicted in columns.values():
        every, sums = torch.cat(predicted), torch.stack([p.sum() for p in predicted])
        rows[0].append(f"{1000 * SECONDS_PER_FRAME * (every - truth).abs().mean():.1f} ms")
        rows[1].append(f"{(every.log() - truth.log()).square().mean():.3f}")
        rows[2].append(f"{100 * ((sums - totals).abs() / totals).mean():.1f} %")
    speech_data.print_table(list(columns), rows)


def draw_picture(path: Path, columns: dict[str, list[Tensor]], utterances: Sequence[Utterance]) -> None:
    """Three held-out utterances, letter by letter: as aligned, and as predicted."""
    plt = speech_data.load_pyplot()
    lengths = [len(u.targets) for u in utterances]
    shown = sorted(range(len(utterances)), key=lambda i: abs(lengths[i] - 36))[:3]
    figure, rows = plt.subplots(len(shown), 1, figsize=(9, 2.3 * len(shown)), layout="constrained", squeeze=False)
    for axes, number in zip(rows[:, 0], shown, strict=True):
        utterance = utterances[number]
        places = torch.arange(lengths[number])
        heights = 1000 * SECONDS_PER_FRAME * utterance.durations
        axes.bar(places, heights, width=0.85, color="#bcd3e6", label="aligned")
        for name, style in (("mean of the letter", "#52606d :"), ("predicted", "#d9480f -")):
            color, linestyle = style.split()
            heights = 1000 * SECONDS_PER_FRAME * columns[name][number]
            axes.step(places, heights, where="mid", color=color, linestyle=linestyle, linewidth=1.3, label=name)
        axes.set_xticks(places, [ALPHABET[c] for c in utterance.targets])
        axes.tick_params(axis="x", length=0)
        axes.set(ylabel="duration (ms)", xlim=(-0.7, lengths[number] - 0.3))
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*rows[0, 0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


# The command ----------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = speech_data.make_parser("Trains a duration predictor on durations from the aligner.", "small models")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--fold", type=int, default=0, help="which sixth of the texts is held out (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    quick = arguments.quick
    settings = QUICK if quick else Settings()
    path = arguments.out / ("quick_durations.pt" if quick else "train_durations.pt")
    if quick:
        torch.set_num_threads(1)  # two would spend more time waiting than working
    if arguments.restart:
        path.unlink(missing_ok=True)

    # The aligner: trained by the other example, with the same clips held out.
    clips, held_out = train_ctc.read_data(arguments.data, quick, arguments.fold)
    aligner_path = arguments.out / ("quick_ctc.pt" if quick else "train_ctc.pt")
    start = train_ctc.QUICK if quick else train_ctc.Settings()
    aligner_settings = train_ctc.Settings(**(vars(start) | {"seed": arguments.seed, "fold": arguments.fold}))
    if not aligner_path.is_file():
        print(f"there is no {aligner_path} yet: training the aligner first (examples/train_ctc.py)")
    aligner_state = train_ctc.train(clips, aligner_settings, aligner_path)
    aligner = train_ctc.load_model(aligner_state["model"], aligner_state["settings"])

    utterances, without_path = find_durations(aligner, clips)
    unseen, unseen_without_path = find_durations(aligner, held_out)
    letters = sum(len(u.targets) for u in utterances)
    print(
        f"training on {len(utterances)} utterances, {letters} letters; held out: {len(unseen)}, "
        f"{sum(len(u.targets) for u in unseen)} letters; without a path: {without_path + unseen_without_path}"
    )

    began = time.perf_counter()
    settings = vars(settings) | {"seed": arguments.seed, "fold": arguments.fold, "clips": len(clips)}
    settings["aligner"] = round(float(sum(value.double().abs().sum() for value in aligner.state_dict().values())), 6)
    state = train(utterances, settings, path)
    print(
        f"trained in {time.perf_counter() - began:.0f} s; loss {state['losses'][0]:.3f} to {state['losses'][-1]:.3f}\n"
    )

    means = mean_durations(utterances)
    columns = {
        "untrained": predict(state["untrained"], settings, unseen),
        "mean of the letter": [means[u.targets] for u in unseen],
        "predicted": predict(state["model"], settings, unseen),
    }
    print("utterances it was trained on (--quick)" if quick else "held-out utterances")
    print_measures(columns, unseen)
    written = [path]
    if not arguments.no_picture:
        written.append(path.with_suffix(".png"))
        draw_picture(written[-1], columns, unseen)
    print("\nwrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    speech_data.run("train_durations", main)
