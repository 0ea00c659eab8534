"""Responses of a policy to the prompts of a dataset, drawn batch by batch and kept for the next attempt."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from madpo.data.tokenize import Encoded
from madpo.jobs.base import DatasetReference
from madpo.jobs.sampling import SamplingParameters
from madpo.sampling.engine import Draw
from madpo.sampling.prompts import encode_prompts
from madpo.storage.references import ResolvedModel
from madpo.types import PromptOnly
from madpo.worker.phase import Phase
from madpo_evaluator.engines import sampling_engine
from madpo_evaluator.generations import Generation, KeptGenerations
from madpo_evaluator.judging.question import said
from madpo_evaluator.kinds.base import JobInputs
from madpo_evaluator.models import Models


def read_prompts(inputs: JobInputs, reference: DatasetReference, *, max_prompts: int | None) -> dict[PromptOnly, int]:
    """Every prompt of a dataset once, in the order of first appearance, with its row."""
    unique: dict[PromptOnly, int] = {}
    for row in inputs.datasets.read(inputs.dataset_id(reference)):
        unique.setdefault(PromptOnly(row.prompt, options=row.options), row.row)
        if len(unique) == max_prompts:
            break
    return unique


def read_chosen(inputs: JobInputs, reference: DatasetReference) -> dict[PromptOnly, str]:
    """The chosen response to every prompt of a dataset of pairs, the first of several, as a judge reads it.

    Raises:
        InvalidArgumentError: The dataset holds no pairs.
    """
    dataset = inputs.preference_dataset(reference, field="spec.evaluation.prompt_dataset")
    chosen: dict[PromptOnly, str] = {}
    for pair in inputs.pairs(dataset):
        chosen.setdefault(PromptOnly(pair.prompt, options=pair.options), said(pair.chosen))
    return chosen


def fit_prompts(
    inputs: JobInputs, models: Models, prompts: Mapping[PromptOnly, int], *, limit: int | None, max_new_tokens: int
) -> tuple[dict[PromptOnly, list[int]], list[int]]:
    """The prompts that leave room for a response, with their ids; and the rows of those that do not."""
    asked = [replace(prompt, row=row) for prompt, row in prompts.items()]
    encoded = encode_prompts(models.tokenizer, asked, limit=limit, max_new_tokens=max_new_tokens)
    fitting = {prompt: ids for prompt, ids in zip(prompts, encoded, strict=True) if ids is not None}
    skipped = [each.row for each, ids in zip(asked, encoded, strict=True) if ids is None]
    if skipped:
        inputs.warn_of_rows(
            f"no response fits behind {len(skipped)} of {len(asked)} prompts, which are skipped", skipped
        )
    return fitting, skipped


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a job draws.

    Args:
        inputs: Of the attempt.
        models: Loaded.
        policy: Where the policy's files are.
        prompts: What is answered, with the token ids of each.
        sampling: How.
        rows: Responses at work at a time; None where the job does not say.
        kept: Where batches are kept.
        kl: Gives the KL of drawn responses to the reference, in nats.
    """

    inputs: JobInputs
    models: Models
    policy: ResolvedModel
    prompts: Mapping[PromptOnly, list[int]]
    sampling: SamplingParameters
    rows: int | None
    kept: KeptGenerations
    kl: Callable[[Sequence[Encoded]], Sequence[float | None]] = lambda responses: [None] * len(responses)

    def batches(self) -> Iterator[Sequence[Generation]]:
        """All responses in some order: first those that earlier attempts have kept, then batch by batch new ones."""
        encoded, temperatures = list(self.prompts.values()), self._temperatures
        count = len(temperatures) * len(encoded) * self.sampling.samples_per_prompt
        earlier = self.kept.read()
        phase = Phase(self.inputs.run, "generating", count, unit="responses", done=len(earlier))
        if earlier:
            yield earlier
        engine = sampling_engine(
            self.inputs.settings,
            self.models,
            self.policy,
            rows=self.rows,
            max_tokens=max(map(len, encoded), default=0) + self.sampling.max_new_tokens,
            scratch=self.inputs.run.directory,
            check=lambda: phase.advance(0),
        )
        drawn: dict[float, set[Draw]] = defaultdict(set)
        for each in earlier:
            drawn[each.temperature].add(Draw(each.prompt_index, each.sample))
        prompts = list(self.prompts)
        for temperature in temperatures:
            for batch in engine.sample(encoded, self.sampling, temperature=temperature, drawn=drawn[temperature]):
                kl = self.kl([response.encoded for response in batch])
                new = [
                    Generation(
                        prompt_index=response.prompt_index,
                        prompt=prompts[response.prompt_index].prompt,
                        options=prompts[response.prompt_index].options,
                        sample=response.sample,
                        temperature=temperature,
                        response=response.text,
                        tokens=len(response.encoded.response_ids),
                        finished=response.finished,
                        kl=value,
                    )
                    for response, value in zip(batch, kl, strict=True)
                ]
                self.kept.add(new)
                phase.advance(len(batch))
                yield new

    def place(self, generation: Generation) -> tuple[int, int, int]:
        """Where a response stands among all: by temperature, prompt and sample."""
        return self._temperatures.index(generation.temperature), generation.prompt_index, generation.sample

    @property
    def _temperatures(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(self.sampling.temperatures))
