"""One resident reward model: text to tokens, tokens to raw logits whose bits do not depend on the neighbours.

Floating-point sums change with the shape of a batch, so a text must always be scored in the same shape: its length
picks a width from a fixed ladder, the width picks the number of rows, and rows nobody waits for are filled with
dummies. Then a score is the same alone, in company, in any row and on every replica of the same revision.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from madpo.data.tokenize import encode_response, pad_id, template_sha256, tokenizer_sha256
from madpo.errors import FailedPreconditionError
from madpo.models.load import load_reward_model, load_tokenizer, reward_scores
from madpo.types import NO_OPTIONS, ChatOptions, Content, RewardModelInfo
from madpo_reward.batcher import BatchShape

logger = logging.getLogger(__name__)

CODE_VERSION = 1
"""Part of the revision; raised by every change of this module that can change a score's bits."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_LADDER = (32, *(width for power in range(6, 30) for width in (1 << power, 3 << power - 1)))
_UNPADDED_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
_SAMPLES = (
    ("The film was", " a quiet surprise."),
    ("Tell me about the sea.", " " + "It is wide, and it is never still. " * 8),
    ("", "Yes."),
)


@dataclass(frozen=True, slots=True)
class ScorerConfig:
    """What decides the bits of a score, next to the model. `batch_tokens` None: 512 on CPU, 8192 on CUDA."""

    dtype: str = "fp32"
    max_width: int = 4096
    batch_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of prompt and response, and whether some had to go."""

    ids: tuple[int, ...]
    truncated: bool


class Scorer:
    """A reward model with its tokenizer. `encode` and `forward` may run in different threads.

    Args:
        model_id: Digest of the model's files.
        model: Sequence-classification model with one label.
        tokenizer: Its tokenizer.
        config: Shapes and precision.
    """

    def __init__(self, model_id: str, model: Any, tokenizer: Any, *, config: ScorerConfig) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._tokenizer = tokenizer
        self._batch_tokens = config.batch_tokens or (8192 if self._device.type == "cuda" else 512)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.widths = batch_widths(min(config.max_width, positions or config.max_width))
        # One column always stays padding: a batch without any would go to another attention kernel, with other bits.
        self.max_tokens = self.widths[-1] - 1
        self.tokenizer_sha256 = tokenizer_sha256(tokenizer)
        self.template_sha256 = template_sha256(tokenizer)
        self.dtype = config.dtype
        self.model_id = model_id
        self.revision = self._revision()

    def describe(self, *, max_pairs_per_request: int) -> RewardModelInfo:
        """What clients are told."""
        return RewardModelInfo(
            model_id=self.model_id,
            revision=self.revision,
            tokenizer_sha256=self.tokenizer_sha256,
            template_sha256=self.template_sha256,
            max_tokens=self.max_tokens,
            dtype=self.dtype,
            max_pairs_per_request=max_pairs_per_request,
        )

    def encode(self, prompt: Content, response: Content, options: ChatOptions = NO_OPTIONS) -> Tokens:
        """Tokenize; a text over `max_tokens` loses the start of its prompt first, then the end of its response.

        Raises:
            InvalidPairError: The model's template cannot render it.
        """
        encoded = encode_response(self._tokenizer, prompt, response, options)
        response_ids = encoded.response_ids[: self.max_tokens]
        room = self.max_tokens - len(response_ids)
        prompt_ids = encoded.prompt_ids[max(0, len(encoded.prompt_ids) - room) :]
        ids = (*prompt_ids, *response_ids)
        return Tokens(ids, truncated=len(ids) < len(encoded.prompt_ids) + len(encoded.response_ids))

    def batch_shape(self, tokens: int) -> BatchShape:
        """The one shape texts of this length are scored in."""
        width = next(width for width in self.widths if width > tokens)
        rows = self._batch_tokens // width
        # Matrix-vector kernels (a head with one label) treat rows past a multiple of four in another way.
        return BatchShape(width=width, rows=rows - rows % 4 or 1)

    def forward(self, texts: Sequence[Sequence[int]], shape: BatchShape) -> list[float]:
        """Raw logits of up to `shape.rows` texts, each shorter than `shape.width`."""
        input_ids = torch.full((shape.rows, shape.width), pad_id(self._tokenizer), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        attention_mask[:, 0] = 1  # a dummy row attends to something: an empty one would be NaN
        for row, ids in enumerate(texts):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        return self._scores(input_ids, attention_mask)[: len(texts)]

    def check(self) -> None:
        """Prove that scores do not depend on neighbours or row, and agree with an unpadded forward pass.

        Raises:
            FailedPreconditionError: They do not, or the tokenizer makes ids the model does not know.
        """
        embeddings = self._model.get_input_embeddings().num_embeddings
        if len(self._tokenizer) > embeddings:
            raise FailedPreconditionError(
                f"{self.model_id}: the tokenizer has {len(self._tokenizer)} tokens, the model embeds {embeddings}"
            )
        samples = [self.encode(prompt, response).ids for prompt, response in _SAMPLES]
        for ids in samples:
            shape = self.batch_shape(len(ids))
            others = [other[: shape.width - 1] for other in samples][: shape.rows - 1]
            (alone,) = self.forward([ids], shape)
            elsewhere = {*self.forward([ids] * shape.rows, shape), self.forward([*others, ids], shape)[-1]}
            (unpadded,) = self._scores(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
            if not abs(alone - unpadded) <= _UNPADDED_TOLERANCE[self.dtype] * (1 + abs(unpadded)):
                raise FailedPreconditionError(
                    f"{self.model_id}: a sample scores {alone!r} padded and {unpadded!r} unpadded"
                    " (does the model ignore its attention mask, or hold non-finite weights?)"
                )
            if elsewhere != {alone}:
                raise FailedPreconditionError(
                    f"{self.model_id}: a sample scores {alone!r} alone and {elsewhere} in other rows or company of"
                    f" {shape}: margins would depend on what else is being scored"
                )

    @torch.inference_mode()
    def _scores(self, input_ids: Tensor, attention_mask: Tensor) -> list[float]:
        rewards = reward_scores(self._model, input_ids.to(self._device), attention_mask.to(self._device))
        return [float(reward) for reward in rewards.float().cpu()]

    def _revision(self) -> str:
        device = (
            torch.cuda.get_device_name(self._device)
            if self._device.type == "cuda"
            else f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        )
        parts = {
            "model_id": self.model_id,
            "tokenizer_sha256": self.tokenizer_sha256,
            "template_sha256": self.template_sha256,
            "dtype": self.dtype,
            "batch_tokens": self._batch_tokens,
            "widths": self.widths,
            "code": CODE_VERSION,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": device,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def batch_widths(limit: int) -> tuple[int, ...]:
    """Widths of batches: 32, 64, 96, 128, 192, 256, 384, 512, ... below the limit, then the limit itself."""
    return (*itertools.takewhile(lambda width: width < limit, _LADDER), limit)


def load_scorer(model_id: str, directory: Path, *, base_directory: Path | None, config: ScorerConfig) -> Scorer:
    """Load a model and let it prove itself.

    Raises:
        InvalidArgumentError: The directory does not hold a reward model we load.
        FailedPreconditionError: It has no trained head with one label, or fails `Scorer.check`.
    """
    tokenizer = load_tokenizer(directory)
    model = load_reward_model(directory, base_directory=base_directory, dtype=DTYPES[config.dtype])
    scorer = Scorer(model_id, model, tokenizer, config=config)
    scorer.check()
    logger.info("reward model ready", extra={"model_id": model_id, "revision": scorer.revision})
    return scorer
