import json
import math
import subprocess
import sys

import pytest

from madpo.errors import InvalidArgumentError
from madpo.losses.registry import METHODS
from madpo.losses.vectors import evaluate_cases
from tests.unit.losses.batches import VECTORS

pytestmark = pytest.mark.methods

SETTING = {"beta": 0.1, "c_max": 2, "c_min": 0.5, "lam": 1, "tau": 2}
DOCUMENT = {
    "batch": VECTORS["batch"],
    "cases": [{"name": "mine", "method": "madpo", "params": SETTING}, {"method": "dpo"}, {"method": "simpo"}],
}


def test_given_numbers_give_the_vectors():
    mine, dpo, simpo = evaluate_cases(DOCUMENT)["cases"]

    assert mine["name"] == "mine"
    assert mine["loss"] == pytest.approx(VECTORS["madpo_A"]["batch_loss_mean"], abs=1e-10)
    assert mine["weight"] == pytest.approx(VECTORS["madpo_A"]["batch_w"], abs=1e-10)
    assert mine["grad_pi_w"] == pytest.approx(VECTORS["madpo_A"]["grad_pi_w"], abs=1e-10)
    assert dpo["per_pair"] == pytest.approx(VECTORS["dpo"]["each"], abs=1e-10)
    assert len(simpo["grad_pi_l"]) == 4


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"cases": []}, "pi_w and pi_l"),
        ({"batch": {"pi_w": [1.0], "pi_l": [1.0, 2.0]}, "cases": []}, r"batch\.pi_l must be a list of 1"),
        ({"batch": {"pi_w": [1.0], "pi_l": ["x"]}, "cases": []}, r"batch\.pi_l"),
        ({"batch": {"pi_w": [1.0], "pi_l": [1.0], "pi_x": [1.0]}, "cases": []}, "no column pi_x"),
        ({"batch": {"pi_w": [1.0], "pi_l": [1.0]}, "cases": {}}, "cases must be a list"),
        ({"batch": {"pi_w": [1.0], "pi_l": [1.0]}, "cases": [{"method": "nope"}]}, r"cases\[0\].*no method 'nope'"),
        ({"batch": {"pi_w": [1.0], "pi_l": [1.0]}, "cases": [{"method": "dpo"}]}, "needs ref_chosen_logps"),
        (DOCUMENT | {"cases": [{"method": "dpo", "params": {"beta": -1}}]}, r"params\.beta"),
        (DOCUMENT | {"cases": [{"method": "dpo", "params": [1]}]}, r"cases\[0\]\.params must be an object"),
    ],
)
def test_wrong_numbers_are_named(document, said):
    with pytest.raises(InvalidArgumentError, match=said):
        evaluate_cases(document)


def test_the_command_prints_json_alone(tmp_path):
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(DOCUMENT))
    done = subprocess.run(
        [sys.executable, "-m", "madpo_client.cli", "methods", "eval", "--vectors", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stderr == ""
    assert json.loads(done.stdout) == evaluate_cases(DOCUMENT)


EVERYTHING = {
    **VECTORS["batch"],
    "gold_logps": [-9, -18, -7, -22],
    "gold_tokens": [9, 15, 6, 20],
    "uncertainty_w": [0.2, 0.5, 0.1, 1],
    "uncertainty_l": [0.1, 0.1, 0.4, 0.2],
    "semantic_distance": [0.1, 0.4, 0, 1.2],
    "mismatched": [-20, -25, -15.5, -35],
    "ref_mismatched": [-20.5, -24.75, -15.75, -35.1],
    **{
        f"{name}_{side}": [[-1.0, -2.0, -0.5][:size] for size in (3, 2, 1, 3)]
        for name in ("tok_pi", "log_sum_p2")
        for side in "wl"
    },
    **{f"tok_ref_{side}": [[-1.5, -1.0, -0.75][:size] for size in (3, 2, 1, 3)] for side in "wl"},
    "list_pi": [VECTORS["adpo_list"]["s"], [-1, -2], [-3, -1, -2], [-4, -2]],
    "list_ref": [VECTORS["adpo_list"]["anchor"], [-1, -1], [-2, -2, -2], [-3, -3]],
    "list_scores": [VECTORS["adpo_list"]["reward"], [1, 0], [0, 1, 2], [2, 1]],
    "list_len": [[8, 9, 7, 11], [2, 2], [3, 1, 2], [4, 2]],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_given_numbers(method):
    (case,) = evaluate_cases({"batch": EVERYTHING, "cases": [{"method": method}]})["cases"]

    assert math.isfinite(case["loss"])
    assert len(case["per_pair"]) == len(case["weight"]) == len(case["grad_pi_w"]) == len(case["grad_pi_l"]) == 4
    assert [len(row) for row in case["grad_list_pi"]] == [4, 2, 3, 2]
    moved = [case[name] for name in case if name.startswith("grad_")]
    assert any(value for column in moved for value in flat(column))


def flat(column):
    return [value for row in column for value in (row if isinstance(row, list) else [row])]


def test_lists_alone_give_the_vectors_of_lists():
    vector = VECTORS["adpo_list"]
    batch = {"list_pi": [vector["s"]], "list_ref": [vector["anchor"]], "list_scores": [vector["reward"]]}
    params = {"tau": vector["tau"], "beta_r": vector["beta_r"], "standardize": False}

    (case,) = evaluate_cases({"batch": batch, "cases": [{"method": "adpo_list", "params": params}]})["cases"]

    assert case["loss"] == pytest.approx(vector["loss_raw"], abs=1e-10)
    assert case["grad_list_pi"] == [pytest.approx(vector["grad_s_raw"], abs=1e-10)]
    with pytest.raises(InvalidArgumentError, match=r"dpo is a method of pairs; give pi_w and pi_l"):
        evaluate_cases({"batch": batch, "cases": [{"method": "dpo"}]})
    with pytest.raises(InvalidArgumentError, match=r"batch\.list_ref must have \[4\] numbers in its rows"):
        evaluate_cases({"batch": batch | {"list_ref": [[1.0, 2.0]]}, "cases": []})


def test_tokens_give_the_vectors_of_tokens():
    vector = VECTORS["ld_dpo"]
    tokens = {name: [vector[name]] for name in ("tok_pi_w", "tok_pi_l", "tok_ref_w", "tok_ref_l")}
    batch = {"pi_w": [sum(vector["tok_pi_w"])], "pi_l": [sum(vector["tok_pi_l"])], **tokens}

    (case,) = evaluate_cases({"batch": batch, "cases": [{"method": "ld_dpo", "params": {"alpha": 0.5}}]})["cases"]

    assert case["loss"] == pytest.approx(vector["loss_b01"], abs=1e-10)
    assert case["grad_tok_pi_w"][0][4] == pytest.approx(case["grad_tok_pi_w"][0][0] / 2)
