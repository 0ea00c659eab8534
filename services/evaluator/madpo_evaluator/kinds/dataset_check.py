"""Dataset checks: what a model's tokenizer and chat template make of stored rows; the tokens are kept for trainings."""

import logging
from collections.abc import Iterator

from madpo.data.check.check import DatasetCheck
from madpo.data.check.tokens import TokenCheck
from madpo.data.encode import EncodedRow
from madpo.jobs.base import validate
from madpo.jobs.dataset_check import DatasetCheckSpec
from madpo.pages.check_page import render_page
from madpo.storage.references import resolve_model
from madpo.storage.tokens import TokenStore
from madpo.types import Dataset, JobKind, JobResult
from madpo.worker.phase import Phase, counted
from madpo_evaluator.kinds.base import EvaluatorKind, JobInputs

logger = logging.getLogger(__name__)


class _IncompleteError(Exception):
    """Some rows have no tokens: no training could use those of the others."""


class DatasetCheckRun:
    """One check: leaves `check.json`, `check.html` and `rows.jsonl`; and the tokens, where every row has some."""

    def __init__(self, inputs: JobInputs) -> None:
        self._inputs, self._run = inputs, inputs.run
        self._spec = validate(DatasetCheckSpec, inputs.run.job.spec, path="spec.dataset_check")

    def execute(self) -> JobResult:
        """Look and publish; returns the verdict and the counts of findings."""
        spec = self._spec
        Phase(self._run, "loading")
        inputs = self._inputs
        dataset = inputs.datasets.get(inputs.dataset_id(spec.dataset))
        model = resolve_model(spec.model, store=inputs.store, models=inputs.models)
        held_out = None if spec.eval_dataset is None else inputs.datasets.read(inputs.dataset_id(spec.eval_dataset))
        artifacts = inputs.artifacts
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
        page = artifacts / "check.html"
        inputs.tolerance.attempt("the page", lambda: page.write_text(render_page(report)), 0)
        inputs.publish()
        findings = {finding.code: finding.count for finding in report.findings}
        return inputs.result({"verdict": report.verdict, "rows": report.rows.kept, "findings": findings})

    def _look(self, dataset: Dataset, check: DatasetCheck, tokens: TokenCheck) -> None:
        """Let all rows pass, and keep their tokens."""
        phase = Phase(self._run, "checking", dataset.rows, unit="rows")
        watched = tokens.watch(check.watch(self._inputs.datasets.read(dataset.dataset_id)))
        with_tokens = 0

        def encoded() -> Iterator[EncodedRow]:
            nonlocal with_tokens
            for passed, (_, ids) in enumerate(counted(watched, phase), start=1):
                # What is kept has no gap: whoever goes on behind it counts rows.
                if ids is not None and with_tokens == passed - 1:
                    with_tokens = passed
                    yield ids
            if with_tokens < dataset.rows:
                raise _IncompleteError

        try:
            scratch = self._run.directory / "tokens"
            TokenStore(self._inputs.store).write(dataset.dataset_id, tokens.tokenizer, encoded(), scratch=scratch)
        except _IncompleteError:
            logger.warning("tokens not kept", extra={"rows": dataset.rows, "tokens_until": with_tokens})


KIND = EvaluatorKind(JobKind.DATASET_CHECK, lambda inputs: DatasetCheckRun(inputs).execute())
