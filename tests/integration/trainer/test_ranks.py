"""What ranks promise each other, between real processes."""

import json
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import json, sys, time
    from pathlib import Path

    import torch
    from torch import nn

    from madpo.errors import InvalidArgumentError, NonFiniteError
    from madpo_trainer import ranks as module
    from madpo_trainer.margins.shared import SharedMargins
    from madpo.types import Job, JobKind, JobState
    from madpo.worker.phase import Interrupted, Phase
    from madpo.worker.workspace import Run
    from madpo_trainer.ranks import open_ranks, run_rank
    from madpo_trainer.settings import RankEnvironment

    module._LONGEST_SILENCE_S = 0.2
    seen = {}

    def refused(call):
        try:
            call()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def fail_on(rank, error):
        def work():
            if ranks.rank == rank:
                raise error
            return ranks.rank
        return work

    class Source:
        def take(self, step):
            if step == 9:
                raise Interrupted("asked to stop")
            return [float(step), None]

    def rows_in_rounds():
        # The second time rank 1 alone sees that its run is to stop, in the second round.
        directory = Path(sys.argv[1], f"run-{ranks.rank}")
        directory.mkdir()
        job = Job("job-" + "0" * 32, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, attempt=1)
        phase = Phase(Run(directory, job), "reference log-probs", 12, unit="rows", reports=ranks.is_leader)
        batches, computed = [[0, 1], [2], [3, 4, 5], [6], [7, 8, 9], [10], [11]], []

        def compute(rows):
            computed.append(rows)
            return sum(rows)

        seen["rows"] = ranks.map_rows(compute, batches, phase)
        events = directory / "events.jsonl"
        said = [json.loads(json.loads(line)[1]) for line in events.read_text().splitlines()] if events.exists() else []
        seen["counted"] = [[each["phase_done"], each["phase_total"]] for each in said][-1:]
        computed.clear()

        def stops(rows):
            if ranks.rank == 1 and rows == [7, 8, 9]:
                (directory / "stop").write_text("cancel")
            return compute(rows)

        seen["stopped"] = refused(lambda: ranks.map_rows(stops, batches, phase))
        seen["computed"] = list(computed)

    def program():
        global ranks
        with open_ranks(RankEnvironment(), timeout_s=4) as ranks:
            seen["place"] = [ranks.rank, ranks.size, ranks.is_leader]
            seen["share"] = [list(ranks.share(range(count))) for count in (7, 2, 0)]
            seen["map"] = [ranks.map(lambda item: item * item, range(count)) for count in (7, 2, 0)]
            seen["gather"] = ranks.gather({"rank": ranks.rank})
            seen["together"] = ranks.together(lambda: ranks.rank * 10)
            seen["lead"] = ranks.lead(lambda: f"from {ranks.rank}")
            seen["errors"] = [
                refused(lambda: ranks.together(fail_on(1, NonFiniteError("row 7", ["7"])))),
                refused(lambda: ranks.lead(fail_on(0, InvalidArgumentError("tau")))),
                refused(lambda: ranks.map(lambda item: fail_on(2, InvalidArgumentError("item"))(), range(5))),
                refused(lambda: ranks.together(fail_on(1, KeyError("chosen")))),
                refused(lambda: ranks.lead(fail_on(0, OSError("disk full")))),
            ]
            rows_in_rounds()
            margins = SharedMargins(Source, ranks)
            seen["margins"] = margins.take(3)
            seen["errors"].append(refused(lambda: margins.take(9)))
            ranks.lead(lambda: time.sleep(6))  # longer than a collective may take
            seen["apart"] = ranks.apart(lambda: [time.sleep(6 if ranks.rank == 1 else 0), ranks.rank][1])
            seen["errors"].append(refused(lambda: ranks.apart(fail_on(1, InvalidArgumentError("rows")))))

            parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
            parameters[0].grad = torch.tensor([1.0, ranks.rank])
            if ranks.rank == 1:
                parameters[1].grad = torch.ones(2)
            ranks.sum_gradients(parameters)
            seen["gradients"] = [None if each.grad is None else each.grad.tolist() for each in parameters]
            ranks.sum_gradients([])
            Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(seen))
        return 0

    run_rank(program)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    program = directory / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run([*torchrun, program, directory], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(3)]


def test_one_rank_leads(seen):
    assert [each["place"] for each in seen] == [[0, 3, True], [1, 3, False], [2, 3, False]]


def test_work_is_dealt_round_robin_and_its_results_come_back_in_order(seen):
    assert [each["share"] for each in seen] == [
        [[0, 3, 6], [0], []],
        [[1, 4], [1], []],
        [[2, 5], [], []],
    ]
    assert all(each["map"] == [[0, 1, 4, 9, 16, 25, 36], [0, 1], []] for each in seen)


def test_what_ranks_have_is_gathered_and_what_the_leader_finds_is_shared(seen):
    assert all(each["gather"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}] for each in seen)
    assert [each["together"] for each in seen] == [0, 10, 20]
    assert all(each["lead"] == "from 0" for each in seen)
    assert all(each["margins"] == [3.0, None] for each in seen)


def test_a_rank_may_wait_for_longer_than_the_others_may_for_it(seen):
    """As for a store that only its host cannot reach."""
    assert [each["apart"] for each in seen] == [0, 1, 2]


def test_an_error_of_one_rank_is_raised_on_all_and_they_go_on_in_step(seen):
    def errors(rank):
        key, disk = "KeyError: 'chosen'", "OSError: disk full"
        return [
            "NonFiniteError: row 7",
            "InvalidArgumentError: tau",
            "InvalidArgumentError: item",
            key if rank == 1 else f"AnotherRankFailedError: another rank failed: {key}",
            disk if rank == 0 else f"AnotherRankFailedError: another rank failed: {disk}",
            "Interrupted: asked to stop",
            "InvalidArgumentError: rows",
        ]

    assert [each["errors"] for each in seen] == [errors(rank) for rank in range(3)]


def test_long_work_is_counted_over_all_ranks_and_stops_on_all_between_the_same_micro_batches(seen):
    assert all(each["rows"] == [1, 2, 12, 6, 24, 10, 11] for each in seen)
    assert [each["counted"] for each in seen] == [[[12, 12]], [], []]
    assert all(each["stopped"] == "Interrupted: " for each in seen)
    # The third round, of the last micro-batch, was begun by none.
    assert [each["computed"] for each in seen] == [[[0, 1], [6]], [[2], [7, 8, 9]], [[3, 4, 5], [10]]]


def test_gradients_are_summed_and_those_nobody_has_stay_away(seen):
    assert all(each["gradients"] == [[3.0, 3.0], [1.0, 1.0], None] for each in seen)


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [("lambda: print('done', end='') or 3", 3, "done"), ("lambda: open('/no such file')", 1, "FileNotFoundError")],
)
def test_a_rank_ends_with_its_programs_code_and_with_all_it_said(program, code, said):
    command = f"from madpo_trainer.ranks import run_rank; run_rank({program})"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60)

    assert done.returncode == code
    assert said in done.stdout + done.stderr
