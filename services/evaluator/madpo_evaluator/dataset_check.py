"""Dataset checks: what a model's tokenizer and chat template make of stored rows; the tokens are kept for trainings."""

import logging
from collections.abc import Iterator

from madpo.data.check.check import DatasetCheck
from madpo.data.check.page import render_page
from madpo.data.check.tokens import TokenCheck
from madpo.data.encode import EncodedRow
from madpo.jobs import DatasetCheckSpec, validate
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.open import open_store
from madpo.storage.references import resolve_model
from madpo.storage.tokens import TokenStore
from madpo.types import Dataset, JobResult
from madpo.worker.phase import Phase
from madpo.worker.workspace import Run
from madpo_evaluator.settings import EvaluatorSettings

logger = logging.getLogger(__name__)

_PROGRESS_ROWS = 256


class _IncompleteError(Exception):
    """Some rows have no tokens: no training could use those of the others."""


class DatasetCheckRun:
    """One check: leaves `check.json`, `check.html` and `rows.jsonl`; and the tokens, where every row has some."""

    def __init__(self, run: Run, settings: EvaluatorSettings) -> None:
        self._run = run
        self._spec = validate(DatasetCheckSpec, run.job.spec, path="spec.dataset_check")
        self._store = open_store(settings)
        self._datasets = DatasetStore(self._store)
        self._models = ModelStore(self._store, settings.workspace / "cache")

    def execute(self) -> JobResult:
        """Look and publish; returns the verdict and the counts of findings."""
        spec = self._spec
        Phase(self._run, "loading")
        dataset = self._datasets.get(spec.dataset_id)
        model = resolve_model(spec.model, store=self._store, models=self._models)
        held_out = None if spec.held_out_dataset_id is None else self._datasets.read(spec.held_out_dataset_id)
        artifacts = self._run.directory / "artifacts"
        artifacts.mkdir(exist_ok=True)
        with (artifacts / "rows.jsonl").open("w", encoding="ascii") as rows_file:
            check = DatasetCheck(rows_file=rows_file, held_out=held_out)
            tokens = TokenCheck(
                model.directory,
                check.findings,
                model=model.model_id or f"{spec.model.job_id} at step {spec.model.step}",
                max_tokens=spec.max_tokens,
                overlong=spec.overlong,
            )
            self._look(dataset, check, tokens)
            report = check.report(dataset.dataset_id, forms=dataset.forms, tokens=tokens.figures())
        Phase(self._run, "reporting")
        (artifacts / "check.json").write_text(report.to_json())
        (artifacts / "check.html").write_text(render_page(report))
        publish_artifacts(self._store, self._run.job.job_id, artifacts, attempt=self._run.attempt)
        findings = {finding.code: finding.count for finding in report.findings}
        return JobResult(summary={"verdict": report.verdict, "rows": report.rows.kept, "findings": findings})

    def _look(self, dataset: Dataset, check: DatasetCheck, tokens: TokenCheck) -> None:
        """Let all rows pass, and keep their tokens."""
        phase = Phase(self._run, "checking", dataset.rows)
        watched = tokens.watch(check.watch(self._datasets.read(dataset.dataset_id)))
        passed = 0

        def encoded() -> Iterator[EncodedRow]:
            nonlocal passed
            for _, ids in watched:
                passed += 1
                if passed % _PROGRESS_ROWS == 0:
                    phase.advance(_PROGRESS_ROWS)
                yield ids
            if passed < dataset.rows:
                raise _IncompleteError

        try:
            scratch = self._run.directory / "tokens"
            TokenStore(self._store).write(dataset.dataset_id, tokens.tokenizer, encoded(), scratch=scratch)
        except _IncompleteError:
            logger.warning("tokens not kept", extra={"rows": dataset.rows, "with_tokens": passed})
