"""The table of what a start takes."""

from bench.startup.run import table


def sample(cpu_s: float) -> dict[str, dict[str, float]]:
    job = {"cpu_s": cpu_s, "claim_to_step_s": 2 * cpu_s, "claim_to_end_s": 3 * cpu_s}
    return {"up": {"cpu_s": cpu_s, "wall_s": 2 * cpu_s}, "at_once": job, "next": job, "after_idle": job}


def test_a_row_has_the_medians_of_each_checkout() -> None:
    rounds = [{"this": sample(this), "other": sample(9.0)} for this in (1.0, 2.0, 7.0)]

    head, _, up, step, *_ = table(rounds).splitlines()

    assert head == "| | this: CPU-s | s | other: CPU-s | s |"
    assert up == "| `madpo up` to all serving | 2.0 | 4.0 | 9.0 | 18.0 |"
    assert step == "| a job at once: until its first step |  | 4.0 |  | 18.0 |"
