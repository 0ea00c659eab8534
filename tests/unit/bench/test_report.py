"""Tables of a result."""

import pytest

from bench import report
from bench.rounds import Ratio


def goal(median, least, most, *, bound=2.0, at_least=True):
    return report.Goal("speed", bound, at_least, lambda sections: Ratio(median, least, most)).row({})


def test_a_goal_is_reached_or_not_by_the_median_and_open_where_rounds_differ_about_it():
    assert goal(2.1, 2.0, 2.2) == ["speed", "≥ 2x", "2.10 (2.00 to 2.20)", "yes"]
    assert goal(1.9, 1.8, 2.1)[3] == "**no**"
    assert goal(2.1, 1.8, 2.4)[3] == ""
    assert goal(3.1, 2.8, 4.4)[3] == "yes"
    assert goal(0.5, 0.4, 0.9, bound=1.0, at_least=False)[3] == "yes"
    assert goal(0.5, 0.45, 0.52, bound=0.3, at_least=False)[3] == "**no**"


def test_what_was_not_measured_or_is_void_is_said():
    sections = {"train": {"body": {"void": "trl has other tokens than packed", "variants": {}}}}
    rows = {row[0]: row for row in report.goals_table(sections)[1:]}

    assert rows["`body`: against TRL as it comes"][2:] == ["not measured (void: trl has other tokens than packed)", ""]
    assert rows["client's CPU of a pair, 32 pairs a message"][2:] == ["not measured (rpc)", ""]


def test_tables_take_their_places_in_a_document():
    document = "# Title\n<!-- table goals -->\nold\n<!-- end -->\nprose\n"

    filled = report.fill(document, [("goals", [["a", "b"], ["1", "2"]])])

    assert filled == "# Title\n<!-- table goals -->\n| a | b |\n| --- | --- |\n| 1 | 2 |\n<!-- end -->\nprose\n"
    with pytest.raises(ValueError, match="no place for the table train"):
        report.fill(document, [("train", [["a"]])])


def test_models_of_different_runs_stand_together_and_the_last_of_the_same_counts():
    def result(**train):
        return {"sections": {"train": {"result": train}, "flops": {"result": len(train)}}}

    joined = report.join([result(body=1, v32k=2), result(body=3)])

    assert joined == {"train": {"body": 3, "v32k": 2}, "flops": 1}


def test_what_vllm_does_stands_beside_ours_on_both_sides():
    def side(ours, peer):
        variants = {
            ours: {"rounds": [{"cpu_s": 4.0}, {"cpu_s": 4.0}]},
            peer: {"rounds": [{"cpu_s": 5.0}, {"cpu_s": 6.0}]},
        }
        return {"task": {"pairs": 8}, "variants": variants, "score_difference": {peer: 1.04e-6}, "void": None}

    sections = {"vllm": {"in_process": side("layout", "vllm"), "service": side("service", "vllm_server")}}

    assert report.vllm_table(sections)[1:] == [
        ["in process", "`layout`", "2.00", "1", ""],
        ["in process", "`vllm`", "1.45", "1.38 (1.25 to 1.50)", "1e-06"],
        ["service", "`service`", "2.00", "1", ""],
        ["service", "`vllm_server`", "1.45", "1.38 (1.25 to 1.50)", "1e-06"],
    ]
    goals = {row[0]: row for row in report.goals_table(sections)[1:]}
    assert goals["scoring against vLLM, in process"][1:] == ["≥ 1.5x", "1.38 (1.25 to 1.50)", "**no**"]


def test_a_peer_without_its_environment_is_said_to_be_skipped():
    assert report.vllm_table({"vllm": {"skipped": "make bench-peers"}})[1][2] == "skipped: make bench-peers"
