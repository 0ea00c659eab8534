"""Tokenizers of model families as files: each trained on a few sentences, with what stands beside it on a hub."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

Style = Literal["gpt2", "digits", "llama3", "qwen", "gemma", "llama2", "unigram"]
"""How text is cut into bytes or pieces:

gpt2     bytes, by GPT-2's expression
digits   the same, each digit alone
llama3   bytes, by the expression of Llama 3
qwen     the same, each digit alone, of normalised characters
gemma    SentencePiece's BPE, with bytes to fall back on
llama2   the same, with a space put in front
unigram  SentencePiece's unigrams
"""

_TEXT = (
    "the sky is blue green red one two three four what where when who film was good bad great awful nice dull yes no "
    "it sea wide salt water hello user assistant system please answer short long question because and or not with 12"
)
_SPLITS = {
    style: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for style, digits in (("llama3", r"\p{N}{1,3}"), ("qwen", r"\p{N}"))
}
_LEARNED = 80
"""Tokens beside the special ones and the bytes."""
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as it lies in a model directory."""

    style: Style
    special_tokens: tuple[str, ...]
    """With the ids 0, 1, 2, ..."""
    template: str | None = None
    """Of `templates/`."""
    before: str | None = None
    """Token in front of every text."""
    after: str | None = None
    """Token behind every text."""
    beside: tuple[str, ...] = ()
    """Which older files there are: `vocab.json`, `merges.txt`, `tokenizer.model`, `spm.model`, `added_tokens.json`,
    `special_tokens_map.json`; or `chat_template.jinja`, where the template is not in the configuration."""

    def write(self, directory: Path) -> None:
        """Write all files; in `tokenizer_config.json`, which is there, what follows from them is added."""
        tokenizer = _train(self.style, self.special_tokens)
        if ends := [token for token in (self.before, self.after) if token]:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=" ".join(filter(None, (self.before, "$A", self.after))),
                special_tokens=[(token, self.special_tokens.index(token)) for token in ends],
            )
        tokenizer.save(str(directory / "tokenizer.json"))
        config = json.loads((directory / "tokenizer_config.json").read_text())
        config["added_tokens_decoder"] = {
            str(index): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
            | {"special": True}
            for index, token in enumerate(self.special_tokens)
        }
        if self.template is not None and "chat_template.jinja" not in self.beside:
            config["chat_template"] = template(self.template)
        _write_json(directory / "tokenizer_config.json", dict(sorted(config.items())))
        for name in self.beside:
            self._write_older(directory / name, json.loads(tokenizer.to_str())["model"], config)

    def _write_older(self, path: Path, model: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        match path.name:
            case "vocab.json":
                _write_json(path, model["vocab"])
            case "merges.txt":
                path.write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in model["merges"]))
            case "added_tokens.json":
                _write_json(path, {token: index for index, token in enumerate(self.special_tokens)})
            case "special_tokens_map.json":
                _write_json(path, {role: config[role] for role in _ROLES if config.get(role)})
            case "tokenizer.model" | "spm.model":
                path.write_bytes(_sentencepiece_model(model, self.special_tokens))
            case "chat_template.jinja":
                path.write_text(template(self.template or ""))
            case _:
                raise ValueError(path.name)


def template(name: str) -> str:
    """A chat template: what the real one says of roles, dates, thoughts and ends of turns, without tools."""
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text()


def _write_json(path: Path, value: Any) -> None:
    """As on hubs: indented, and with a line end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@lru_cache
def _train(style: Style, special_tokens: tuple[str, ...]) -> Tokenizer:
    generator = random.Random(0)
    corpus = [" ".join(generator.choices(_TEXT.split(), k=12)).capitalize() + "." for _ in range(200)]
    specials = [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    common: dict[str, Any] = {"special_tokens": specials, "show_progress": False}
    if style == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        tokenizer.train_from_iterator(
            corpus, trainers.UnigramTrainer(unk_token="[UNK]", vocab_size=200 + len(specials), **common)
        )
        return tokenizer
    if style in ("gemma", "llama2"):
        return _sentencepiece_like(style, corpus, specials, common)
    tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = by_bytes
    if style == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    if style == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    if style in _SPLITS:
        only_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_SPLITS[style]), "isolated"), only_bytes]
        )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(alphabet) + len(specials) + _LEARNED
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, **common))
    return tokenizer


def _sentencepiece_like(
    style: Style, corpus: list[str], specials: list[AddedToken], common: dict[str, Any]
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if style == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.decoder = decoders.Sequence(steps)
    words = [f" {word}" for text in corpus for word in text.split()]
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=len(specials) + 2 * _LEARNED, **common))
    state = json.loads(tokenizer.to_str())
    learned = list(state["model"]["vocab"])[len(specials) :]
    pieces = [*(str(token) for token in specials), *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    state["model"]["vocab"] = {piece: index for index, piece in enumerate(pieces)}
    return Tokenizer.from_str(json.dumps(state))


def _sentencepiece_model(model: Mapping[str, Any], special_tokens: tuple[str, ...]) -> bytes:
    """The same pieces in SentencePiece's own format."""
    from transformers.utils import sentencepiece_model_pb2_new as format_of

    kinds = format_of.ModelProto.SentencePiece
    proto = format_of.ModelProto()
    unigram = model["type"] == "Unigram"
    proto.trainer_spec.model_type = 1 if unigram else 2
    proto.trainer_spec.byte_fallback = not unigram
    pieces = model["vocab"] if unigram else [(piece, -float(index)) for piece, index in model["vocab"].items()]
    for piece, score in pieces:
        kind = kinds.NORMAL
        if piece in special_tokens:
            kind = kinds.UNKNOWN if "unk" in piece.lower() else kinds.CONTROL
        elif piece.startswith("<0x"):
            kind = kinds.BYTE
        proto.pieces.add(piece=piece, score=score, type=kind)
    return bytes(proto.SerializeToString())
