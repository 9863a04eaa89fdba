"""What an ONNX model's metadata and the files beside it say about it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models.measure import first_line

__all__ = ["Facts"]

BLANKS = ("<blk>", "<blank>", "<pad>", "[PAD]", "<eps>", "<ctc>")  # what vocabularies call it, the clearest first


class Facts(NamedTuple):
    """What the model's metadata and the files beside it say."""

    path: Path
    metadata: Mapping[str, str]

    def file(self, name: str) -> Any:
        """The content of a JSON file beside the model; ``{}`` if there is none."""
        path = self.path.with_name(name)
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise SpeechError(f"cannot read {path} as JSON: {first_line(error)}") from error
        if not isinstance(content, Mapping):
            raise SpeechError(f"{path} must hold a JSON object, found a {type(content).__name__}")
        return content

    def find(self, *keys: str, file: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """The first of these keys that the metadata have, or else the content of a file; None if none has."""
        for source in (self.metadata, file):
            for key in keys:
                if source.get(key) is not None:
                    return source[key]
        return None

    def extractor(self) -> Mapping[str, Any]:
        """What is known of the feature extractor. transformers 5 saves it as a part of another file."""
        extractor: Mapping[str, Any] = self.file("preprocessor_config.json")
        return extractor or self.file("processor_config.json").get("feature_extractor", {})

    def normalize(self) -> bool:
        """Whether samples are brought to mean 0 and variance 1 before the model hears them."""
        return str(self.find("normalize", "do_normalize", file=self.extractor())).lower() in ("1", "true", "yes")

    def labels(self) -> Sequence[str] | Mapping[str, int] | None:
        written = self.find("labels")
        if written is not None:
            try:
                labels: Any = json.loads(written)
            except ValueError:
                labels = None
            if not isinstance(labels, Mapping | list):
                raise SpeechError(
                    f"labels in the metadata of {self.path.name} must be a JSON list, found {written[:60]!r}"
                )
            return labels
        vocabulary = self.file("vocab.json")
        if any(isinstance(index, Mapping) for index in vocabulary.values()):
            raise SpeechError(
                f"{self.path.with_name('vocab.json')} has a vocabulary for each of {len(vocabulary)} languages: give "
                "the labels of the one that the model was exported with"
            )
        return vocabulary or self.tokens()

    def tokens(self) -> Mapping[str, int] | None:
        """tokens.txt: a symbol and its class in every line."""
        path = self.path.with_name("tokens.txt")
        if not path.is_file():
            return None
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # no other line breaks: they may be symbols
        except (ValueError, OSError) as error:
            raise SpeechError(f"cannot read {path} as UTF-8: {first_line(error)}") from error
        vocabulary = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            symbol, _, index = line.rstrip().rpartition(" ")
            if not index.isdecimal():
                raise SpeechError(f"{path}, line {number}: expected a symbol, a space and its class, found {line!r}")
            vocabulary[symbol or " "] = int(index)  # the symbol may be a space itself
        return vocabulary

    def blank(self, labels: Sequence[str] | Mapping[str, int]) -> int | str | None:
        written = self.find("blank", "blank_id")
        if written is not None:
            return int(written) if str(written).isdecimal() else str(written)
        padding = self.file("tokenizer_config.json").get("pad_token")
        padding = padding.get("content") if isinstance(padding, Mapping) else padding
        if padding in labels:
            return str(padding)
        index = self.file("config.json").get("pad_token_id")
        if isinstance(index, int):
            return index
        return next((name for name in BLANKS if name in labels), None)

    def sample_rate(self) -> int | None:
        rate = self.find("sample_rate", "sampling_rate", file=self.extractor())
        if rate is None:
            return None
        if not str(rate).isdecimal():
            raise SpeechError(f"the sample rate of {self.path.name} must be an integer, found {rate!r}")
        return int(rate)

    def separator(self, labels: Sequence[str] | Mapping[str, int]) -> int | str | None:
        written = self.find("separator", "word_delimiter_token", file=self.file("tokenizer_config.json"))
        if written is None:
            return "auto"
        if written in labels:
            return str(written)
        return int(written) if str(written).isdecimal() else "auto"
