"""What is done with every family: train in all ways, evaluate, download. Each thing once a process."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from madpo.data.tokenize import Encoded, encode_response
from madpo.data.tokenizer import load_tokenizer
from madpo.types import Content, Job, Message
from madpo_client.job import JobHandle
from madpo_client.merged import MergedDtype
from tests.families.catalogue import BY_NAME
from tests.families.family import Family
from tests.families.site import Site

Flow = Literal["supervised", "supervised_lora", "reward", "reward_lora", "policy", "policy_lora"]

QUESTIONS = (
    "What is the sea?",
    "What is 12 and 47?",
    "Is the film good or bad? A short answer, please.",
    "Who was the user, and who the assistant?",
)
GOOD = ("It is wide salt water.", "The two are good.", "Yes, good and great, because it is not long.", "You, and me.")
BAD = ("Blue.", "No, the system was awful.", "Dull. " * 12, "The sky is green and red and the sea is not.")
"""Rejected: shorter and longer ones than those chosen."""

NEW_TOKENS = 12
"""Longest response of an evaluation."""

_TRAINING: dict[str, Any] = {
    "global_batch_size": 4,
    "max_steps": 3,
    "max_tokens": 256,
    "micro_batch_tokens": 512,
    "optimizer": {"learning_rate": 2e-3, "warmup_ratio": 0.0},
}
_OVERFIT = {"max_steps": 80, "optimizer": {"learning_rate": 1e-2}}


class Flows:
    """Models, jobs and downloads, made when first asked for."""

    def __init__(self, site: Site, home: Path) -> None:
        self.site, self._home = site, home
        self.base_directory = cache(self._make)
        self.base_id = cache(self._upload)
        self.dataset_id = cache(self._dataset)
        self.job = cache(self._run)
        self.evaluation = cache(self._evaluate)
        self._downloaded = cache(self._download)

    def download(self, family: Family, flow: Flow, *, merged: MergedDtype | None = None) -> Path:
        """What a user gets of a flow's model, of an adapter perhaps merged into its base."""
        return self._downloaded(family, flow, merged)

    def checkpoint(self, family: Family, flow: Flow) -> Path:
        """What a user gets of the last checkpoint of a flow."""
        folder = self._home / "checkpoints" / f"{family.name}-{flow}"
        if not folder.exists():
            job = self.job(family, flow)
            self.site.client.models.download(f"{job.job_id}@{int(job.result.summary['steps'])}", folder)
        return folder

    def base_by_its_id(self, family: Family) -> Path:
        """Where the base lies in a folder that is called as it is stored."""
        folder = self._home / "by-id"
        if not (folder / self.base_id(family)).exists():
            self.site.client.models.download(self.base_id(family), folder / self.base_id(family))
        return folder

    def encode(self, family: Family, responses: Sequence[str]) -> list[Encoded]:
        """Each question with its response, as the base's tokenizer has them."""
        tokenizer = load_tokenizer(self.base_directory(family))
        return [encode_response(tokenizer, *each) for each in contents(family, responses)]

    def _make(self, family: Family) -> Path:
        return family.make(self._home / "models" / family.name)

    def _upload(self, family: Family) -> str:
        return str(self.site.client.models.upload(self.base_directory(family)).model_id)

    def _dataset(self, kind: Literal["pairs", "completions", "prompts"], is_chat: bool) -> str:
        def turn(role: str, text: str) -> Any:
            return [{"role": role, "content": text}] if is_chat else f" {text}" if role == "assistant" else text

        rows = [
            {"prompt": turn("user", question), "chosen": turn("assistant", good), "rejected": turn("assistant", bad)}
            for question, good, bad in zip(QUESTIONS, GOOD, BAD, strict=True)
        ]
        names = {"pairs": ["prompt", "chosen", "rejected"], "completions": ["prompt", "chosen"], "prompts": ["prompt"]}
        kept = [{name: row[name] for name in names[kind]} for row in rows]
        if kind == "completions":
            kept = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in kept]
        return str(self.site.client.datasets.upload(kept).dataset_id)

    def _run(self, family: Family, flow: Flow) -> Job:
        jobs = self.site.client.jobs
        way, _, lora = flow.partition("_")
        training = {**_TRAINING, **(_OVERFIT if way == "supervised" else {})}
        if lora:
            training["lora"] = {"rank": 8, "alpha": 32}
        data = self.dataset_id("completions" if way == "supervised" else "pairs", family.is_chat)
        asked: dict[str, Any] = {"model": self.base_id(family), "dataset": data, "training": training, "name": flow}
        handle: JobHandle
        if way == "supervised":
            handle = jobs.train_supervised(**asked)
        elif way == "reward":
            handle = jobs.train_reward(**asked, eval_dataset=data)
        else:
            scorer = self.job(scorer_of(family), scoring_flow(flow)).job_id
            handle = jobs.train_policy(**asked, eval_dataset=data, params={"tau": 1.0}, reward_model=scorer)
        return self.site.run(handle)

    def _evaluate(self, family: Family) -> Job:
        handle = self.site.client.jobs.evaluate(
            model=self.job(family, "policy_lora").job_id,
            reference=self.base_id(family),
            prompts=self.dataset_id("prompts", family.is_chat),
            eval_dataset=self.dataset_id("pairs", family.is_chat),
            reward_model=self.job(scorer_of(family), "reward_lora").job_id,
            sampling={"max_new_tokens": NEW_TOKENS, "samples_per_prompt": 2, "temperatures": [0.0, 1.0]},
        )
        return self.site.run(handle)

    def _download(self, family: Family, flow: Flow, merged: MergedDtype | None) -> Path:
        into = self._home / "downloads" / f"{family.name}-{flow}-{merged or 'as-it-is'}"
        options: dict[str, Any] = {"merged": True, "merged_dtype": merged} if merged else {}
        return self.site.client.models.download(self.job(family, flow).job_id, into, **options)


def scorer_of(family: Family) -> Family:
    """Whose reward models its policies are trained with."""
    return BY_NAME[family.scored_by or family.name]


def scoring_flow(flow: Flow) -> Flow:
    """What the reward model of a policy's flow is made by: as an adapter where the policy is one."""
    return "reward_lora" if flow.endswith("_lora") else "reward"


def contents(family: Family, responses: Sequence[str]) -> list[tuple[Content, Content]]:
    """Prompts and responses, as messages where the family has a template."""
    if family.is_chat:
        return [
            ((Message("user", question),), (Message("assistant", response),))
            for question, response in zip(QUESTIONS, responses, strict=True)
        ]
    return [(question, f" {response}") for question, response in zip(QUESTIONS, responses, strict=True)]
