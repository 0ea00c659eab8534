"""A store with models, prompts and pairs, a reward service that counts words, and runs of jobs on them."""

import asyncio
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from madpo.ports import Claim
from madpo.rpc import convert
from madpo.storage.artifacts import open_artifact
from madpo.storage.local import LocalStore
from madpo.types import (
    Job,
    JobKind,
    JobResult,
    JobState,
    Message,
    PreferencePair,
    RewardModelInfo,
    ScoredPair,
    ScoredResponse,
    ScoreTimings,
    content_digest,
)
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceServicer
from madpo.worker.workspace import Outcome, Run, Workspace
from madpo_evaluator.kinds.base import JobInputs
from madpo_evaluator.kinds.registry import evaluator_kind
from madpo_evaluator.service import evaluation_command
from madpo_evaluator.settings import EvaluatorSettings

PROMPTS = ("the film", "the film was good .", "the", "the film", "bad film .", "good")
PAIRS = [
    PreferencePair("the film was", "good .", "bad .", row=1),
    PreferencePair("the", "film was good", "film was bad", row=2),
    PreferencePair(
        (Message("user", "good"),), (Message("assistant", "film ."),), (Message("assistant", "bad"),), row=3
    ),
]


@dataclass(frozen=True)
class Site:
    """A store with two policies, prompts and pairs, and the settings an evaluator would have."""

    home: Path
    store: LocalStore
    policy_id: str
    reference_id: str
    prompts_id: str
    pairs_id: str
    reward_target: str = ""

    def workspace(
        self, job_id: str, spec: Mapping[str, Any], *, attempt: int = 1, kind: JobKind = JobKind.EVALUATION
    ) -> Workspace:
        """What a worker leaves for the run of a job."""
        given = {"model": {"model_id": self.policy_id}, "prompt_dataset": self.prompts_id}
        given |= {"sampling": {"max_new_tokens": 8}}
        full = {**({} if kind is JobKind.SCORING else given), **spec}
        job = Job(job_id, kind, JobState.RUNNING, full, display_name=f"run {job_id[4:6]}", attempt=attempt)
        return Workspace(self.home / "jobs" / job_id, Claim(job, attempt, "worker"))

    async def run_process(self, job_id: str, spec: Mapping[str, Any]) -> Outcome:
        """Run one attempt as a worker does; returns the run's last word."""
        return await self.finish(self.workspace(job_id, spec))

    async def finish(self, workspace: Workspace) -> Outcome:
        """Run the attempt of a workspace to its end."""
        await self.launch(workspace, evaluation_command(workspace.directory))
        outcome = workspace.outcome()
        assert outcome is not None, workspace.log_tail(60)
        return outcome

    async def launch(self, workspace: Workspace, command: Sequence[str]) -> int:
        """Run a command as a worker does; returns its exit code."""
        settings = {
            "MADPO_EVALUATOR_STORE_URL": f"file://{self.home / 'store'}",
            "MADPO_EVALUATOR_REDIS_URL": "redis://127.0.0.1:1/0",
            "MADPO_EVALUATOR_WORKSPACE": str(self.home),
            "MADPO_EVALUATOR_REWARD_TARGET": self.reward_target,
            "MADPO_EVALUATOR_THREADS": "1",
        }
        with workspace.log_path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, env=os.environ | settings, stdout=log, stderr=log)
            return await process.wait()

    async def execute(self, job_id: str, spec: Mapping[str, Any], *, workspace: Workspace | None = None) -> JobResult:
        """The same inside this process."""
        settings = EvaluatorSettings(
            store_url=f"file://{self.home / 'store'}",
            redis_url=SecretStr("redis://127.0.0.1:1/0"),
            workspace=self.home,
            reward_target=self.reward_target or None,
        )
        run = Run.open((workspace or self.workspace(job_id, spec)).directory)
        return await asyncio.to_thread(evaluator_kind(run.job.kind).execute, JobInputs.open(run, settings))

    def report(self, job_id: str) -> dict[str, Any]:
        with open_artifact(self.store, job_id, "report.json") as stream:
            report: dict[str, Any] = json.load(stream)
        return report

    def generations(self, job_id: str) -> list[dict[str, Any]]:
        with open_artifact(self.store, job_id, "generations.jsonl") as stream:
            return [json.loads(line) for line in stream]


class WordCounter(RewardServiceServicer):
    """A reward service whose score is the number of words of a response, and that of a pair's the number of letters."""

    revision = "revision-1"

    def __init__(self) -> None:
        self.asked = 0

    async def GetRewardModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        info = RewardModelInfo(request.model_id, self.revision, "", "", 512, "float32", 16)
        return reward.GetRewardModelResponse(reward_model=convert.reward_model_to_proto(info))

    async def ScorePairs(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked += len(request.pairs)
        pairs = [convert.pair_from_proto(message, field="pair") for message in request.pairs]
        scored = [
            ScoredPair(pair.pair_id, float(len(_text(pair.chosen))), float(len(_text(pair.rejected))), 1, 1)
            for pair in pairs
        ]
        return reward.ScorePairsResponse(
            model_id=request.model_id,
            revision=self.revision,
            pairs=map(convert.scored_pair_to_proto, scored),
            timings=convert.timings_to_proto(ScoreTimings(0, 0, 0)),
        )

    async def ScoreResponses(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked += len(request.responses)
        responses = [convert.response_from_proto(message, field="response") for message in request.responses]
        scored = [
            ScoredResponse(
                content_digest(prompt, response, options=options), float(len(_text(response).split())), tokens=1
            )
            for prompt, response, options in responses
        ]
        return reward.ScoreResponsesResponse(
            model_id=request.model_id,
            revision=self.revision,
            responses=map(convert.scored_response_to_proto, scored),
            timings=convert.timings_to_proto(ScoreTimings(0, 0, 0)),
        )


def _text(content: Any) -> str:
    return content if isinstance(content, str) else content[0].content


def job_id(name: str) -> str:
    return f"job-{uuid.uuid5(uuid.NAMESPACE_URL, name).hex}"
