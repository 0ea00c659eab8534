"""What it costs to render and tokenize in a process with limits: python -m bench.scoring.tokenizing [--size body].

The same request is tokenized and scored again and again, in turns by the tokenizing process and here, so that both
see the same machine; the fastest of the rounds count. In the service the process also takes the work off the
interpreter that answers calls.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import models
from bench.meters import conditions
from bench.scoring.pairs import make_pairs
from madpo.data.tokenizer import load_tokenizer
from madpo.data.unembedded import UnembeddedTokens
from madpo_reward.encoding import Text, Tokens, encode
from madpo_reward.scorer import ScorerConfig, load_scorer

Tokenize = Callable[[Sequence[Text]], Sequence[Tokens]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="body")
    parser.add_argument("--pairs", type=int, default=64, help="of one request")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    pairs = make_pairs(arguments.pairs, prompt=96, response=96)
    texts = [Text(pair.pair_id, pair.prompt, each) for pair in pairs for each in (pair.chosen, pair.rejected)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        models.save_reward_model(models.SIZES[arguments.size], directory)
        scorer = load_scorer("bench", directory, base_directory=None, config=ScorerConfig())
        plain = load_tokenizer(directory)
        unembedded = UnembeddedTokens(plain, None)
        ways: dict[str, Tokenize] = {
            "process": scorer.encode_texts,
            "here": lambda each: encode(plain, each, max_tokens=scorer.max_tokens, unembedded=unembedded),
        }
        tokenize_s: dict[str, list[float]] = {way: [] for way in ways}
        request_s: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(arguments.rounds + 1):
            for way, tokenize in ways.items():
                start = time.perf_counter()
                tokens = tokenize(texts)
                tokenized = time.perf_counter()
                scorer._score(tokens)
                if number:  # the first is to warm up
                    tokenize_s[way].append(tokenized - start)
                    request_s[way].append(time.perf_counter() - start)
        scorer.close()
    results: dict[str, Any] = {
        way: {
            "tokenize_ms": 1000 * min(tokenize_s[way]),
            "request_ms": 1000 * min(request_s[way]),
        }
        for way in ways
    }
    results["throughput_of_here"] = min(request_s["here"]) / min(request_s["process"])
    print("JSON " + json.dumps({**results, "texts": len(texts), **conditions()}))


if __name__ == "__main__":
    main()
