"""What tokenizer and model card of a model of transformers say: labels, blank, separator, spelling, licence."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models.callable import check_labels

__all__ = ["find_blank", "find_separator", "make_spell", "name_classes", "only", "read_card", "spells_characters"]


def name_classes(tokenizer: Any, classes: int, name: str) -> list[str]:
    """Names of the model's classes. The vocabulary may have fewer, or more: ``<s>`` is often added behind them."""
    # A tokenizer of several languages may keep tokens that it added for another one; its own vocabulary goes first.
    own = getattr(tokenizer, "encoder", {})
    names: dict[int, str] = {}
    for label, index in [*own.items(), *tokenizer.get_vocab().items()]:
        if index < classes:
            names.setdefault(index, label)
    labels = check_labels({label: index for index, label in names.items()}, name)
    return labels + [f"<{index}>" for index in range(len(labels), classes)]


def find_blank(config: Any, tokenizer: Any, labels: Sequence[str], name: str) -> int:
    """The blank: what the configuration calls so, else the token for padding."""
    # By name first: older tokenizers of several languages go on giving the number that it has in another one.
    padding = labels.index(tokenizer.pad_token) if tokenizer.pad_token in labels else tokenizer.pad_token_id
    found: list[Any] = [getattr(config, "blank_token_id", None), padding, getattr(config, "pad_token_id", None)]
    found = [index for index in found if index is not None and 0 <= index < len(labels)]
    if not found:
        raise SpeechError(
            f"{name} has no token for padding among its {len(labels)} classes, which CTC models of transformers "
            "use as the blank: set pad_token_id in its config.json"
        )
    return int(found[0])


def find_separator(tokenizer: Any, labels: Sequence[str], blank: int) -> int | None:
    """The class that the tokenizer puts between words; None if it puts none, as where words begin with "▁"."""
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    if delimiter is not None:
        return labels.index(delimiter) if delimiter in labels and labels.index(delimiter) != blank else None
    letters = [label for label in labels if len(label) == 1 and label.isalpha()]
    for letter in letters[:1]:
        one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (letter, f"{letter} {letter}"))
        between = two[len(one) : -len(one)] if one else []
        if len(between) == 1 and two == [*one, *between, *one] and 0 <= between[0] < len(labels):
            return int(between[0]) if between[0] not in (blank, tokenizer.unk_token_id) else None
    return None


def spells_characters(tokenizer: Any) -> bool:
    """Whether the tokenizer takes a text apart into its characters, so that the aligner can do it itself."""
    return type(tokenizer).__name__ == "Wav2Vec2CTCTokenizer"


def make_spell(tokenizer: Any, classes: int, blank: int) -> Callable[[str], list[int] | None]:
    """Returns ``spell(part)``, which asks the tokenizer; in capitals if it does not know small letters."""
    unknown = tokenizer.unk_token_id

    def spell(part: str) -> list[int] | None:
        for text in (part, part.upper()):
            pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
            if pieces and all(0 <= piece < classes and piece not in (unknown, blank) for piece in pieces):
                return [int(piece) for piece in pieces]
        return None

    return spell


def read_card(transformers: Any, location: str) -> Mapping[str, Any]:
    """The facts at the top of README.md, as a mapping; empty where there are none, or no such file."""
    try:
        path = transformers.utils.cached_file(location, "README.md")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        if not lines or lines[0].strip() != "---":
            return {}
        front = "\n".join(lines[1 : lines.index("---", 1)])
        facts = importlib.import_module("yaml").safe_load(front)  # transformers needs it, so it is there
    except Exception:  # a model without a card is as good
        return {}
    return facts if isinstance(facts, Mapping) else {}


def only(value: Any) -> str | None:
    """A fact that is a string, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None
