"""Every kind of job is one declaration, and everything that depends on the kind follows from it."""

import ast
from pathlib import Path

import pytest

import madpo
from madpo.errors import InvalidArgumentError
from madpo.jobs.base import DatasetReference, ModelReference, NeedsDataset, NeedsModel, Spec
from madpo.jobs.registry import KINDS, QUEUES, kind_named, kind_of, parse_spec
from madpo.types import JobKind
from madpo.v1 import job_service_pb2
from madpo_evaluator.kinds.registry import EVALUATOR_KINDS, evaluator_kind
from madpo_trainer.kinds.registry import TRAINING_KINDS, training_kind

ROOT = Path(madpo.__file__).parents[2]
SOURCES = [
    path
    for folder in ("src", "client", "services", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "v1" not in path.parts
]
OWN_MODULES = ("kinds", "jobs")
"""Folders whose modules may name the kind they are about."""


def test_the_contract_the_enumeration_and_the_declarations_name_the_same_kinds() -> None:
    wire = job_service_pb2.JobSpec.DESCRIPTOR.oneofs_by_name["spec"].fields
    assert [field.name for field in wire] == [kind.value for kind in JobKind] == [kind.value for kind in KINDS]


def test_every_kind_is_run_by_the_workers_of_its_queue_and_by_no_others() -> None:
    workers = {"train": set(TRAINING_KINDS), "evaluate": set(EVALUATOR_KINDS)}
    assert {queue: {kind for kind in KINDS if KINDS[kind].queue == queue} for queue in QUEUES} == workers


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_reference_of_a_spec_says_what_it_must_lead_to(kind) -> None:
    for name, field in kind.spec.model_fields.items():
        text = str(field.annotation)
        if ModelReference.__name__ in text:
            assert any(isinstance(note, NeedsModel) for note in field.metadata), name
        if DatasetReference.__name__ in text:
            assert any(isinstance(note, NeedsDataset) for note in field.metadata), name


def test_a_kind_that_does_not_exist_is_refused_everywhere() -> None:
    with pytest.raises(InvalidArgumentError, match="there is no job kind 'pruning'; kinds: supervised_training"):
        kind_named("pruning")
    with pytest.raises(InvalidArgumentError, match="a trainer does not run evaluation jobs"):
        training_kind(JobKind.EVALUATION)
    with pytest.raises(InvalidArgumentError, match="an evaluator does not run reward_training jobs"):
        evaluator_kind(JobKind.REWARD_TRAINING)


def test_a_spec_knows_its_kind() -> None:
    model, dataset = "model-" + "a" * 32, "dataset-" + "b" * 32
    spec = parse_spec(JobKind.REWARD_TRAINING, {"model": model, "dataset": dataset})
    assert kind_of(spec) is KINDS[JobKind.REWARD_TRAINING]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_code_chooses_by_kind(path: Path) -> None:
    """A ladder over kinds, or a list of some of them, would be another place to change for a new one."""
    if path.parent.name in OWN_MODULES or (path.name == "jobs.py" and path.parent.name == "types"):
        return
    tree = ast.parse(path.read_text())
    specs = {kind.spec.__name__ for kind in KINDS.values()}
    ladders = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
        and specs & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]
    collections = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, (ast.Dict, ast.Set, ast.List, ast.Tuple))
        and sum(
            isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "JobKind"
            for part in ast.iter_child_nodes(node)
        )
        > 1
    ]
    assert not ladders, f"{path} asks for the type of a spec in lines {ladders}"
    assert not collections, f"{path} lists kinds in lines {collections}"


def test_a_spec_is_immutable() -> None:
    assert all(issubclass(kind.spec, Spec) and kind.spec.model_config["frozen"] for kind in KINDS.values())
