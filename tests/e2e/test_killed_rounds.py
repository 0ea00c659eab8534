"""A chain of three rounds whose processes are killed in every stage ends with the model it would have had."""

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from madpo.types import JobState, StateChange
from madpo_client.align.chain import Chain, Found, make_chain
from madpo_client.align.recipe import read_recipe
from madpo_client.embedded import EmbeddedStack
from madpo_client.references import dataset_reference, model_reference
from madpo_examples.toy_reviews.model import make_base_model
from tests.e2e.test_training import kill, preference_rows, process

pytestmark = pytest.mark.timeout(850)  # each of the three runs takes a minute where nothing else is to do

VICTIMS = ("trainer", "evaluator", "reward", "gateway")
TRAINING = {"max_steps": 3, "global_batch_size": 8, "max_tokens": 64, "checkpoint_every_steps": 1}
RECIPE = {
    "data": {"pairs": "pairs"},
    "base": "base",
    "policies": [{"name": "iterated", "method": "madpo", "rounds": 3}],
    "fresh": {"sampling": {"max_new_tokens": 8}, "keep_unfinished": True, "labelled_pairs": 4},
    "evaluation": {"sampling": {"max_new_tokens": 8}},
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        for service in ("GATEWAY", "TRAINER", "EVALUATOR"):  # a dead worker's job is waited for a lease long
            environment.setenv(f"MADPO_{service}_LEASE_S", "6")
        for service in ("TRAINER", "EVALUATOR"):
            environment.setenv(f"MADPO_{service}_RENEW_S", "2")
            environment.delenv(f"MADPO_{service}_SPARE_AFTER_S")  # the next job's process is ready when it comes
        with EmbeddedStack(tmp_path_factory.mktemp("stack"), threads=1) as stack:
            yield stack


@pytest.fixture(scope="module")
def found(stack, tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    make_base_model(directory)
    with stack.client() as client:
        pairs = dataset_reference(client.datasets.upload(preference_rows(40)))
        base = model_reference(client.models.upload(directory))
    return Found(base, pairs, None, pairs, pairs, completions=None, reward_model=None)


@pytest.fixture(scope="module")
def undisturbed(stack, found):
    """The ids of all models of a run that nothing happens to."""
    return run(stack, chain_of(found, log_every_steps=1), victims={})


def chain_of(found: Found, *, log_every_steps: int) -> Chain:
    """Jobs of their own for each run, which ask for the same."""
    training = TRAINING | {"log_every_steps": log_every_steps}
    recipe = RECIPE | {"training": training, "reward_model": {"training": training}}
    return make_chain(read_recipe(Path("toy.yaml"), recipe), found)


def stages(chain: Chain) -> list[str]:
    return [step.name for step in chain.steps() if step not in chain.checks]


def run(stack: EmbeddedStack, chain: Chain, *, victims: Mapping[str, str]) -> dict[str, str]:
    """Carry out a chain; in each stage that has a victim it is killed once the stage's job runs."""
    models: dict[str, str] = {}
    with stack.client() as client:
        asked = {
            step.name: client.jobs.create(
                step.kind, step.spec.model_dump(mode="json", exclude_unset=True), request_id=step.request_id
            )
            for step in chain.steps()
            if step.name in stages(chain)
        }
        for name, job in asked.items():
            left = [victims[name]] if name in victims else []
            for event in job.watch():
                if left and isinstance(event.event, StateChange) and event.event.state is JobState.RUNNING:
                    kill(alive(stack, left.pop()))
            assert job.state is JobState.SUCCEEDED, f"{name}: {job.job.reason}"
            assert not left, f"nobody was killed during {name}"
            models[name] = (job.job.result and job.job.result.model_id) or ""
    return models


def alive(stack: EmbeddedStack, name: str) -> psutil.Process:
    """The process of a service, which may be starting again from the time it was killed before."""
    while True:
        try:
            return process(stack, name)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.slow
def test_three_rounds_leave_three_models(undisturbed):
    assert len(set(undisturbed.values()) - {""}) == 4  # with the reward model


@pytest.mark.slow
@pytest.mark.promise("T1")
@pytest.mark.parametrize("first", [0, 1], ids=["trainer first", "evaluator first"])
def test_three_rounds_end_with_the_same_model_whatever_is_killed(stack, found, undisturbed, figure, first):
    chain = chain_of(found, log_every_steps=2 + first)
    # Three kinds of stages and four victims: within both runs each is killed in each kind of stage of a round.
    victims = {name: VICTIMS[(place + first) % len(VICTIMS)] for place, name in enumerate(stages(chain))}

    models = run(stack, chain, victims=victims)

    figure(f"three rounds, {len(victims)} kills of trainer, evaluator, scorer and gateway, the same final model id")
    assert models == undisturbed
