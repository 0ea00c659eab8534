"""The page about jobs is that of the specs."""

from dataclasses import replace
from pathlib import Path

import pytest

from madpo.jobs import catalogue
from madpo.jobs.catalogue import expected, to_markdown
from madpo.jobs.dataset_check import DatasetCheckSpec
from madpo.jobs.fields import fields_of
from madpo.jobs.kind import Kind
from madpo.jobs.registry import KINDS, parse_spec
from madpo.types import DatasetKind, JobKind
from madpo_client.cli.spec_values import read_spec

PAGE = (Path(__file__).parents[3] / "docs" / "jobs.md").read_text()


def section(heading: str) -> str:
    return PAGE.split(f"\n{heading}\n")[1].split("\n## ")[0].split("\n### ")[0]


def test_the_committed_page_is_the_generated_one() -> None:
    assert to_markdown() == PAGE, "run `make docs`"


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_has_its_section_with_its_own_fields_and_old_names(kind: Kind) -> None:
    found = section(f"## {kind.name}")

    assert f"Queue `{kind.queue}`; {'trains;' if kind.is_training else 'trains nothing;'}" in found
    for field in fields_of(kind.spec):
        is_own = field.owner is kind.spec
        assert (f"| `{field.name}` | " in found) == is_own
        assert f"| `{field.name}` | " in PAGE
    for old, new in kind.spec.renamed.items():
        assert f"`{old}` (now `{new}`)" in found


def test_shared_parts_stand_once_under_the_names_to_write_and_are_linked() -> None:
    assert PAGE.count("\n### TrainingParameters\n") == 1
    assert PAGE.count("[TrainingParameters](#trainingparameters)") == 3
    found = section("### OptimizerParameters")
    assert "| `training.optimizer.weight_decay` | number in [0, 100] | 0.01 | Share of a weight" in found
    assert "`training.optimizer` of `supervised_training`, `reward_training` and `policy_training`" in found
    assert "| `step` | integer in [0, 10000000] or null | null |" in section("### ModelReference")


def test_a_shared_part_stands_where_each_kind_has_it() -> None:
    found = section("### ModelReference")
    listed = {
        part.split(" of ")[1]: part.split(" of ")[0] for part in found.split("In ")[1].split(".\n")[0].split("; ")
    }
    assert listed == {
        "`supervised_training`, `reward_training` and `dataset_check`": "`model`",
        "`policy_training`": "`model` and `margin.reward_model`",
        "`evaluation`": "`model`, `reference` and `reward_model`",
        "`calibration` and `scoring`": "`reward_model`",
        "`sampling`": "`model` and `reward_model`",
    }


def test_a_job_is_named_in_place_of_a_dataset_once_there_are_jobs_that_leave_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note, field = "No kind of job leaves a dataset yet", next(fields_of(DatasetCheckSpec))
    for leaves in (frozenset[DatasetKind](), frozenset({DatasetKind.PREFERENCE})):
        changed = {name: replace(kind, leaves_dataset=leaves) for name, kind in KINDS.items()}
        monkeypatch.setattr(catalogue, "KINDS", changed)
        page = to_markdown()
        assert (note in page) == (not leaves)
        assert ("where a model or a dataset is asked for" in page) == bool(leaves)
        assert expected(field) == ("a DATASET_ID or a JOB_ID" if leaves else "a DATASET_ID")


def test_the_file_that_the_page_shows_is_a_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(PAGE.split("```yaml\n")[1].split("```")[0])
    spec = parse_spec(JobKind.POLICY_TRAINING, read_spec(tmp_path / "spec.yaml"))
    assert (spec.method.params, spec.training.optimizer.learning_rate) == ({"beta": 0.05}, 5e-6)
