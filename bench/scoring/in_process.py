"""Our scorer in process, in turns: python -m bench.scoring.in_process VARIANT TASK. It is given token ids."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import models
from bench.meters import Meter
from bench.scoring.task import ScoringTask
from bench.turns import Turns
from madpo_reward.encoding import Tokens
from madpo_reward.scorer import Scorer, ScorerConfig, load_scorer


def score(scorer: Scorer, texts: Sequence[Tokens]) -> list[float]:
    """Raw scores, in the order asked for."""
    scores = [0.0] * len(texts)
    for unit in scorer.plan(texts):
        for place, reward in zip(unit.places, scorer.forward([unit])[0], strict=True):
            scores[place] = reward
    return scores


def _tokens(task: ScoringTask, turn: int) -> list[Tokens]:
    pairs = task.token_ids(turn)
    return [Tokens(tuple(pair.prompt), tuple(ids)) for pair in pairs for ids in (pair.chosen, pair.rejected)]


def main() -> None:
    turns = Turns()
    task, _ = ScoringTask.parse()
    torch.set_num_threads(task.threads)
    with tempfile.TemporaryDirectory() as scratch:
        models.save_reward_model(models.SIZES[task.size], Path(scratch))
        scorer = load_scorer("bench", Path(scratch), base_directory=None, config=ScorerConfig(dtype="fp32"))
        score(scorer, _tokens(task, -1)[:8])
        meter, more, number = Meter(), turns.done({"layout": scorer.layout.name}), 0
        while more:
            texts = _tokens(task, number)
            meter.start()
            scores = score(scorer, texts)
            more = turns.done(meter.stop().as_json() | {"scores": scores})
            number += 1
        scorer.close()


if __name__ == "__main__":
    main()
