import json
import subprocess
import sys

import pytest

from madpo.errors import InvalidArgumentError
from madpo.losses.vectors import evaluate_cases
from tests.unit.methods.batches import VECTORS

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
