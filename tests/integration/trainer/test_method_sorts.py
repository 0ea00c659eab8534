"""Methods of every sort through the real trainer: splits and pauses agree, ledgers say what was trained on.

`tests/e2e/test_methods.py` trains every method on the embedded stack.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from madpo import losses
from madpo.errors import InvalidArgumentError
from madpo.losses import catalogue, registry
from madpo.losses.registry import METHODS, parse_params
from madpo_client.cli import app
from tests.integration.trainer.training_site import LISTS, OUTER_LOOPS, PAIRS, Site

pytestmark = pytest.mark.methods

TRAINING = {
    "max_steps": 3,
    "global_batch_size": 8,
    "micro_batch_tokens": 40,
    "max_tokens": 32,
    # Adam brings every gradient to one size: with a small eps also those that are nothing but rounding.
    "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0, "eps": 1e-3},
}


def spec(site: Site, method: str, params: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """A policy job on the data that the method asks for."""
    params = {**OUTER_LOOPS.get(method, {}), **(params or {})}
    requirements = METHODS[method].requirements(parse_params(method, params))
    return {
        "dataset": site.lists if requirements.list else site.pairs,
        "method": {"name": method, "params": params},
        "margin": {"source": "dataset"} if requirements.margin else None,
        "training": {**TRAINING, **training},
    }


SORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "weights over the batch": ("madpo", {"tau": 2.0, "normalize_weights": True}),
    "tokens and chance": ("x_sgdpo", {}),
    "whole distributions": ("wpo", {"beta": 0.1}),
    "lists": ("irpo", {}),
    "gold": ("tpo", {"beta": 0.1}),
    "uncertainty": ("updpo", {}),
    "mismatched": ("kto", {}),
    "state": ("alpha_dpo", {}),
    "state and chance": ("beta_dpo", {"alpha": 2.0}),
    "a reference that follows": ("tr_dpo", {"every": 2, "alpha": 0.3}),
    "a policy that moves on": ("apo_accel", {"iteration_steps": 2}),
    "an anchor of lists": ("adpo_list", {"anchor": "ema", "anchor_decay": 0.5}),
    "an anchor that waits": ("adpo", {"anchor": "kl", "kl_threshold": 1e-4}),
}
"""A method of every sort of input, with parameters under which it matters."""


@pytest.mark.parametrize("sort", SORTS)
def test_micro_batches_equal_one_batch_and_a_run_that_was_paused_one_that_was_not(site: Site, sort: str):
    method, params = SORTS[sort]
    name = sort.replace(" ", "-")
    common: dict[str, Any] = {"max_steps": 4, "checkpoint_every_steps": 3}

    straight = site.train(f"s-{name}", spec(site, method, params, **common))
    whole = site.train(f"w-{name}", spec(site, method, params, **common, micro_batch_tokens=4096))
    paused = site.train(f"p-{name}", spec(site, method, params, **common), pause_at=3)

    assert [each.kind for each in (straight, whole, paused)] == ["succeeded"] * 3
    assert paused.result.model_id == straight.result.model_id
    expected, found = site.weights(whole.result.model_id), site.weights(straight.result.model_id)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("method", ["alpha_dpo", "tr_dpo"])
def test_a_paused_run_of_adapters_with_dropout_in_half_precision_ends_with_the_same_bits(site: Site, method: str):
    lora = {"rank": 2, "dropout": 0.3, "target_modules": ["q_proj", "v_proj"]}
    common: dict[str, Any] = {"max_steps": 4, "checkpoint_every_steps": 3, "precision": "bf16", "lora": lora}

    straight = site.train(f"adapters-{method}", spec(site, method, **common))
    paused = site.train(f"adapters-paused-{method}", spec(site, method, **common), pause_at=3)

    assert [each.kind for each in (straight, paused)] == ["succeeded"] * 2
    assert paused.result.model_id == straight.result.model_id


def test_a_ledger_of_lists_has_a_row_for_each_with_its_best_against_its_worst(site: Site):
    assert site.train("ledger-lists", spec(site, "irpo")).kind == "succeeded"

    rows = site.ledger("ledger-lists")
    by_number = {ranked.row: ranked for ranked in LISTS}
    assert len(rows) == 3 * 8
    for row in rows:
        ranked = by_number[row["row"]]
        assert row["pair_id"] == ranked.list_id
        assert row["responses"] == len(ranked.responses)
        assert row["reward_margin"] is None
        assert math.isfinite(row["implicit_margin"])


def test_methods_of_pairs_take_the_best_and_the_worst_of_a_list(site: Site):
    job = spec(site, "dpo") | {"dataset": site.lists, "eval_dataset": site.lists}

    outcome = site.train("pairs-of-lists", job)

    assert outcome.kind == "succeeded", outcome.reason
    assert outcome.result.summary["eval"]["pairs"] == len(LISTS)
    pair_ids = {ranked.row: ranked.as_pair().pair_id for ranked in LISTS}
    assert all(row["pair_id"] == pair_ids[row["row"]] for row in site.ledger("pairs-of-lists"))


def test_a_list_method_on_pairs_fails_by_name_should_one_get_past_the_gateway(site: Site):
    with pytest.raises(InvalidArgumentError, match="irpo needs a dataset of lists"):
        site.train("lists-of-pairs", spec(site, "irpo") | {"dataset": site.pairs})


def test_a_row_dropped_for_its_gold_response_is_gone_for_its_method_alone(site: Site):
    jobs = {method: spec(site, method, max_tokens=10, overlong="drop") for method in ("dpo", "tpo")}
    outcomes = {method: site.train(f"dropped-{method}", job) for method, job in jobs.items()}

    dropped = {method: outcome.result.summary["rows"]["training"]["dropped"] for method, outcome in outcomes.items()}
    assert 0 < dropped["dpo"] < dropped["tpo"] < len(PAIRS)


def test_a_reference_moves_when_it_is_due(site: Site):
    def moved(name: str, method: str, params: dict[str, Any]) -> list[float]:
        assert site.train(name, spec(site, method, params, max_steps=4)).kind == "succeeded"
        return [row["reference/moved"] for row in site.metrics(name)]

    assert moved("moves-every-second", "tr_dpo", {"every": 2}) == [0, 1, 0, 1]
    assert moved("moves-when-far", "adpo", {"anchor": "kl", "kl_threshold": 1e3}) == [0, 0, 0, 0]


def test_a_method_of_ten_lines_is_listed_explained_checked_and_trained(site: Site, tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) == 10
    (tmp_path / "square.py").write_text(code)
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "METHODS", registry.find_methods())

    listed = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)
    assert [method["name"] for method in listed].count("square") == 1
    assert "beta = 0.1   > 0" in CliRunner().invoke(app, ["methods", "show", "square"]).stdout
    assert "### square" in catalogue.to_markdown()
    with pytest.raises(InvalidArgumentError, match=r"params\.beta: Input should be greater than 0"):
        registry.parse_params("square", {"beta": -1})
    outcome = site.train("ten-lines", {"dataset": site.pairs, "method": {"name": "square"}, "training": TRAINING})
    assert outcome.kind == "succeeded"
    assert {row["weight"] for row in site.ledger("ten-lines")} == {1.0}
