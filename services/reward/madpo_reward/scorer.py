"""One resident reward model: text to tokens, tokens to raw logits whose bits do not depend on the neighbours."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from madpo.data.limited import load_limited, process_of
from madpo.data.tokenizer_process import TokenizerProcess
from madpo.data.unembedded import UnembeddedTokens
from madpo.errors import FailedPreconditionError
from madpo.model_files.context_limit import context_limit
from madpo.models.device import DTYPES, Precision, precision_on
from madpo.models.load import load_reward_model
from madpo.models.merge import write_merged
from madpo.models.prepacked import prepack, unpack
from madpo.models.scores import inner_model, padding_of, reward_scores
from madpo.storage.local_copies import LocalCopies
from madpo.types import Content, RewardModelInfo
from madpo_reward.batcher import BatchShape, Unit, one_batch
from madpo_reward.encoding import Text, Tokens, digests, encode
from madpo_reward.faults import told
from madpo_reward.layouts import Layout, PaddedRows, SharedPrompts, WholeTexts, may_share_prompts
from madpo_reward.packed import PackedRows, packed_refusal
from madpo_reward.vllm import VllmRows, engine_arguments, load_rows

logger = logging.getLogger(__name__)

CODE_VERSION = 4
"""Part of the revision; raised by every change of scorer and layouts that can change a score's bits."""

_PLAIN_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
_SAMPLES = (
    ("The film was", " a quiet surprise."),
    ("Tell me about the sea.", " " + "It is wide, and it is never still. " * 8),
    ("Tell me about the sea.", " It is salt water."),
    ("", "Yes."),
)
_GPU_BATCH_POSITIONS, _TINY_BATCH_POSITIONS = 8192, 512
_VLLM_MEMORY = 0.9
"""Share of a GPU's memory, where the service may take all of it."""
_TINY_WEIGHTS = 1_000_000
"""Of layers and head. Below it a forward pass over a text costs less than the calls it is made of."""


@dataclass(frozen=True, slots=True)
class ScorerConfig:
    """What decides the bits of a score, next to the model: see the settings of the same names."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    max_tokens: int = 4096
    batch_tokens: int | None = None
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm_options: Mapping[str, Any] = field(default_factory=dict)
    memory_share: float = 1.0


class Scorer:
    """A reward model with its tokenizer. `encode` and `forward` may run in different threads.

    Args:
        model_id: Digest of the model's files.
        model: Sequence-classification model with one label.
        tokenizer: Its tokenizer, which works within limits where it is of `load_limited`.
        layout: How texts become forward passes of it.
        dtype: Name of its precision.
        prepacked: Its weights are laid out by `prepack`.
        device: That the layout computes on; None where the model is there.

    Attributes:
        tokenizing: Its own, so that no other model waits for it.
        copies: Of its files, held as long as it lives: a tokenizing process that ended reads them again.
    """

    def __init__(
        self,
        model_id: str,
        model: Any,
        tokenizer: Any,
        *,
        layout: Layout,
        dtype: str,
        prepacked: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._model, self._tokenizer, self.layout = model, tokenizer, layout
        self._prepacked = prepacked
        self._device = device or model.device
        self.max_tokens = layout.max_tokens
        self.tokenizer_sha256, self.template_sha256 = digests(tokenizer)
        self.dtype = dtype
        self.model_id = model_id
        self.revision = self._revision()
        unembedded = UnembeddedTokens(tokenizer, model.get_input_embeddings().num_embeddings)
        self._encode = partial(encode, max_tokens=self.max_tokens, unembedded=unembedded)
        self.tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")
        self.copies: LocalCopies | None = None
        self._sample = Tokens((), (0,))

    def close(self) -> None:
        """End what is being tokenized."""
        if (process := process_of(self._tokenizer)) is not None:
            process.close()

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

    def encode_texts(self, texts: Sequence[Text]) -> list[Tokens]:
        """Tokenize the texts of a request, as `madpo_reward.encoding.encode` says. Blocking."""
        return self._encode(self._tokenizer, texts)

    def encode(self, prompt: Content, response: Content) -> Tokens:
        """Tokenize one text."""
        return self.encode_texts([Text("a text", prompt, response)])[0]

    def plan(self, texts: Sequence[Tokens]) -> list[Unit[Tokens]]:
        """What is computed together of a request's texts."""
        return self.layout.plan(texts)

    @property
    def prepares_ahead(self) -> bool:
        """A batch is prepared while the former one is computed."""
        return self.layout.prepares_ahead

    def prepare(self, units: Sequence[Unit[Tokens]]) -> Callable[[], list[list[float]]]:
        """What gives the raw logits of each unit's texts; the units have one shape and fit into one batch.

        Both this and what it gives raise:
            FailedPreconditionError: The model fails on these texts, and would again.
            ShortOfMemoryError: There is not memory enough for now.
        """
        with self._telling(units):
            compute = self.layout.prepare(units)

        def work() -> list[list[float]]:
            with self._telling(units):
                return compute()

        return work

    @contextmanager
    def _telling(self, units: Sequence[Unit[Tokens]]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            positions = sum(unit.positions for unit in units)
            raise told(error, f"{self.model_id} cannot score {positions} positions") from error

    def forward(self, units: Sequence[Unit[Tokens]]) -> list[list[float]]:
        """What `prepare` gives, at once."""
        return self.prepare(units)()

    def shrink(self) -> bool:
        """Take half as much at a time from now on, since memory ran out; whether that can be."""
        if not self.layout.shrink():
            return False
        logger.warning("memory ran out, scoring half as much at a time", extra={"model_id": self.model_id})
        return True

    def sample(self) -> list[Unit[Tokens]]:
        """Units of a short text that was scored before, to see whether that can be done still."""
        return self.plan([self._sample])

    def check(self) -> None:
        """Prove that scores do not depend on company, order or row, and agree with a plain forward pass.

        Raises:
            FailedPreconditionError: They do not.
        """
        samples = [self.encode(prompt, response) for prompt, response in _SAMPLES]
        self._sample = min(samples, key=len)
        together = self._score(samples)
        for text, reward in zip(samples, together, strict=True):
            (alone,) = self._score([text])
            plain = self._score_plainly(text)
            if not abs(alone - plain) <= _PLAIN_TOLERANCE[self.dtype] * (1 + abs(plain)):
                raise FailedPreconditionError(
                    f"{self.model_id}: a sample scores {alone!r} in layout {self.layout.name!r} and {plain!r} in a"
                    " plain forward pass (does the model ignore its attention mask, or hold non-finite weights?)"
                )
            (unit,) = self.plan([text])
            copies = 2 if unit.shape.width is None else unit.shape.positions // unit.positions
            elsewhere = {reward, *self._score([text] * copies), self._score([*samples[::-1], text])[-1]}
            # Where bits are not kept, as near as the plain forward pass must be.
            allowed = 0.0 if self.layout.keeps_bits else _PLAIN_TOLERANCE[self.dtype] * (1 + abs(alone))
            if not all(abs(score - alone) <= allowed for score in elsewhere):
                raise FailedPreconditionError(
                    f"{self.model_id}: a sample scores {alone!r} alone and {elsewhere} in other rows or company:"
                    " margins would depend on what else is being scored"
                )

    def _score(self, texts: Sequence[Tokens]) -> list[float]:
        """As the batcher does, in the fewest batches."""
        rewards = [0.0] * len(texts)
        for batch in _batches(self.plan(texts)):
            for unit, of_unit in zip(batch, self.forward(batch), strict=True):
                for place, reward in zip(unit.places, of_unit, strict=True):
                    rewards[place] = reward
        return rewards

    @torch.inference_mode()
    def _score_plainly(self, text: Tokens) -> float:
        input_ids = torch.tensor([text.ids], device=self._model.device)
        return float(reward_scores(self._model, input_ids, torch.ones_like(input_ids)))

    def forget_model(self) -> None:
        """Let go of the model itself, whose plain forward pass `check` asks: the layout has another."""
        self._model = None

    def _revision(self) -> str:
        device = self._device
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        )
        parts = {
            "model_id": self.model_id,
            "tokenizer_sha256": self.tokenizer_sha256,
            "template_sha256": self.template_sha256,
            "dtype": self.dtype,
            "layout": self.layout.name,
            "max_tokens": self.max_tokens,
            "code": CODE_VERSION,
            "prepacked": self._prepacked,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": name,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_scorer(model_id: str, directory: Path, *, base_directory: Path | None, config: ScorerConfig) -> Scorer:
    """Load a model and let it prove itself, in the first layout in which it can.

    Raises:
        InvalidArgumentError: The directory does not hold a reward model we load.
        FailedPreconditionError: It has no trained head with one label, or fails `Scorer.check`.
    """
    process = TokenizerProcess(directory, base_directory=base_directory)
    tokenizer = load_limited(directory, base_directory=base_directory, process=process)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision_on(device, config.dtype)
    if config.engine == "vllm":
        return _by_vllm(
            model_id, directory, base_directory, tokenizer, precision=precision, device=device, config=config
        )
    model = load_reward_model(directory, base_directory=base_directory, dtype=DTYPES[precision], tokenizer=tokenizer)
    model.to(device)
    scorer = partial(Scorer, model_id, model, tokenizer, dtype=precision)
    layouts = _layouts(model, pad_id=padding_of(model), config=config)
    body = inner_model(model).base_model
    if not _is_on_gpu(model) and not _is_tiny(model) and prepack(body):
        try:
            return _first_proven(partial(scorer, prepacked=True), layouts)
        except FailedPreconditionError as error:
            logger.warning("reward model scored without prepacked weights", extra={"error": str(error)})
            unpack(body)
    return _first_proven(scorer, layouts)


def _by_vllm(
    model_id: str,
    directory: Path,
    base_directory: Path | None,
    tokenizer: Any,
    *,
    precision: Precision,
    device: torch.device,
    config: ScorerConfig,
) -> Scorer:
    """A scorer whose layout is vLLM's; transformers' model is there, on the CPU, until it has proved itself."""
    rows: VllmRows | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="madpo-merged-") as scratch:
            if base_directory is not None:
                exact, adapter, directory = precision == "fp32", directory, Path(scratch)
                write_merged(adapter, directory, base_directory=base_directory, kind="reward", exact=exact)
            model = load_reward_model(directory, base_directory=None, dtype=DTYPES[precision], tokenizer=tokenizer)
            max_tokens = _max_tokens(model, config)
            arguments = engine_arguments(
                directory,
                precision=precision,
                max_tokens=max_tokens,
                memory_share=min(_VLLM_MEMORY, config.memory_share),
                on_gpu=device.type == "cuda",
                options=config.vllm_options,
            )
            rows = load_rows(arguments, max_tokens=max_tokens, options=config.vllm_options)
        scorer = _proven(Scorer(model_id, model, tokenizer, layout=rows, dtype=precision, device=device))
        scorer.forget_model()
        return scorer
    except Exception as error:
        if rows is not None:
            rows.close()
        raised = told(error, f"{model_id} cannot be loaded")
        if not isinstance(raised, FailedPreconditionError):
            raise raised from error
        message = f"{raised} (this is the engine vllm; MADPO_REWARD_ENGINE=transformers may take the model)"
        raise FailedPreconditionError(message) from error


def _first_proven(scorer: Callable[..., Scorer], layouts: Sequence[Layout]) -> Scorer:
    *preferred, last = layouts
    for layout in preferred:
        try:
            return _proven(scorer(layout=layout))
        except FailedPreconditionError as error:
            logger.warning("reward model scored in another layout", extra={"without": layout.name, "error": str(error)})
    return _proven(scorer(layout=last))


def _proven(scorer: Scorer) -> Scorer:
    try:
        scorer.check()
    except Exception as error:  # the same texts fail each time: what the model is made of does not fit together
        raise told(error, f"{scorer.model_id} cannot score a sample") from error
    logger.info(
        "reward model ready",
        extra={"model_id": scorer.model_id, "revision": scorer.revision, "layout": scorer.layout.name},
    )
    return scorer


def _layouts(model: Any, *, pad_id: int, config: ScorerConfig) -> list[Layout]:
    """Those that may do for a model, the best first."""
    max_tokens = _max_tokens(model, config)
    batch_positions = _batch_positions(model) if config.batch_tokens is None else config.batch_tokens
    whole = WholeTexts(model, max_tokens=max_tokens)
    if batch_positions:
        padded = PaddedRows(model, pad_id=pad_id, max_width=max_tokens, batch_positions=batch_positions)
        if config.batch_tokens is None and _is_on_gpu(model):
            if not (refusal := packed_refusal(model)):
                return [PackedRows(model, max_tokens=max_tokens), padded, whole]
            logger.info("reward model scored in padded rows", extra={"reason": refusal})
        return [padded, whole]
    return [SharedPrompts(model, max_tokens=max_tokens), whole] if may_share_prompts(model) else [whole]


def _max_tokens(model: Any, config: ScorerConfig) -> int:
    return min(config.max_tokens, context_limit(model.config.to_dict()) or config.max_tokens)


def _batch_positions(model: Any) -> int:
    """Of a padded forward pass on the model's device; 0 where single texts keep it busy."""
    if _is_on_gpu(model):
        return _GPU_BATCH_POSITIONS
    return _TINY_BATCH_POSITIONS if _is_tiny(model) else 0


def _is_tiny(model: Any) -> bool:
    weights: int = sum(parameter.numel() for parameter in model.parameters())
    embeddings: int = model.get_input_embeddings().weight.numel()
    return weights - embeddings < _TINY_WEIGHTS


def _is_on_gpu(model: Any) -> bool:
    return bool(model.device.type == "cuda")


def _batches(units: Sequence[Unit[Tokens]]) -> Iterator[Sequence[Unit[Tokens]]]:
    """Units as the batcher puts them together when nobody else asks."""
    queues: dict[BatchShape, list[Unit[Tokens]]] = {}
    for unit in units:
        queues.setdefault(unit.shape, []).append(unit)
    for queue in queues.values():
        while queue:
            batch = one_batch(queue)
            yield batch
            queue = queue[len(batch) :]
