"""Tables and plots of results: python -m bench.report RESULT [RESULT ...] [--document docs/performance.md].

Of several results that measured the same, the last one counts; models trained in different runs stand together.
Tables take the place of those between `<!-- table NAME -->` and `<!-- end -->` in the document; plots go to `images/`
beside it. Without a document the tables are printed.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.plots import plot_growth, plot_scoring, plot_training
from bench.rounds import Ratio, ratio, spread
from bench.scoring.task import PACKED, PADDED
from bench.training import growth

OURS = "packed"
MIB = 2**20

Sections = Mapping[str, Any]
Table = list[list[str]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that is to be reached."""

    what: str
    bound: float
    at_least: bool
    figure: Callable[[Sections], Ratio]
    unit: str = "x"

    def row(self, sections: Sections) -> list[str]:
        """Goal, measured, and whether it is reached."""
        goal = f"{'≥' if self.at_least else '≤'} {self.bound:g}{self.unit}"
        try:
            found = self.figure(sections)
        except KeyError as missing:
            return [self.what, goal, f"not measured ({missing.args[0]})", ""]
        # Far from the goal it does not matter how far.
        extremes = found.least, found.most
        sure = all((each >= self.bound) is self.at_least or each == self.bound for each in extremes)
        reached = (found.median >= self.bound) is self.at_least or found.median == self.bound
        verdict = ("yes" if reached else "**no**") if found.agrees or sure else ""
        # A share near nothing may differ by any factor and still be near nothing.
        return [self.what, goal, found.span if self.unit == " %" else str(found), verdict]


def speed(model: str, peer: str) -> Callable[[Sections], Ratio]:
    """By how much the peer takes more CPU-seconds than we do."""
    return lambda sections: ratio(_valid(sections["train"][model]), peer, OURS, "cpu_s")


def memory(model: str, peer: str, field: str) -> Callable[[Sections], Ratio]:
    """What we take of the peer's memory."""
    return lambda sections: ratio(_valid(sections["train"][model]), OURS, peer, field)


def scoring(peer: str) -> Callable[[Sections], Ratio]:
    """By how much the peer takes more CPU-seconds than our service does."""
    return lambda sections: ratio(_valid(sections["score"]), peer, "service", "cpu_s")


def beside_vllm(side: str, ours: str, peer: str) -> Callable[[Sections], Ratio]:
    """By how much vLLM takes more CPU-seconds than we do."""
    return lambda sections: ratio(_valid(sections["vllm"][side]), peer, ours, "cpu_s")


def products(model: str) -> Callable[[Sections], Ratio]:
    """FLOPs of matrix products over the least there are."""

    def figure(sections: Sections) -> Ratio:
        over = sections["flops"][model][OURS]["products_over_least"]
        return Ratio(over, over, over)

    return figure


def over(section: str, *path: str, base: str, own: str, field: str = "cpu_s") -> Callable[[Sections], Ratio]:
    """Samples of one way over those of another, where a section keeps a list of each."""

    def figure(sections: Sections) -> Ratio:
        ways = sections[section]
        for name in path:
            ways = ways[name]
        return spread([a / b for a, b in zip(ways[base][field], ways[own][field], strict=True)])

    return figure


def client_cost(sections: Sections) -> Ratio:
    """Client's CPU of a pair in microseconds, at 32 pairs a message."""
    ways = sections["rpc"]["ways"]
    return spread([each["client_cpu_us_per_pair"] for each in ways["32 pairs a message, 2 in flight"]])


def live_margins(sections: Sections) -> Ratio:
    """Waiting for margins after the first step, in percent of the time of these steps."""
    runs = sections["margins"]["results"]["live"]
    return spread([100 * sum(run["wait_s"][1:]) / sum(run["step_s"][1:]) for run in runs])


def two_replicas(sections: Sections) -> Ratio:
    """CPU-seconds of one scorer over those of the busier of two."""
    return spread([sum(each["1"]["cpu_s"]) / max(each["2"]["cpu_s"]) for each in sections["replicas"]["rounds"]])


def two_replicas_by_wall(sections: Sections) -> Ratio:
    """Seconds of one scorer over those of two."""
    return spread([each["1"]["wall_s"] / each["2"]["wall_s"] for each in sections["replicas"]["rounds"]])


def uneven_traffic(sections: Sections) -> Ratio:
    """How far the busier of two replicas is over half of the pairs, in percent."""
    shares = [max(each["2"]["pairs"]) / sum(each["2"]["pairs"]) for each in sections["replicas"]["rounds"]]
    return spread([100 * (2 * share - 1) for share in shares])


GOALS = (
    Goal("`body`: pairs per CPU-second against ideal TRL", 1.6, True, speed("body", "trl_ideal")),
    Goal("`body`: against TRL, reference precomputed", 2.0, True, speed("body", "trl_pre")),
    Goal("`body`: against TRL as it comes", 2.7, True, speed("body", "trl")),
    Goal("`v32k`: against ideal TRL", 1.9, True, speed("v32k", "trl_ideal")),
    Goal("`v128k`: against ideal TRL", 1.8, True, speed("v128k", "trl_ideal")),
    Goal("`body`: activation peak of ideal TRL's", 0.4, False, memory("body", "trl_ideal", "activation_bytes")),
    Goal("`v32k`: activation peak of ideal TRL's", 0.4, False, memory("v32k", "trl_ideal", "activation_bytes")),
    Goal("`v128k`: activation peak of ideal TRL's", 0.4, False, memory("v128k", "trl_ideal", "activation_bytes")),
    Goal("`body`: peak RSS of precomputed TRL's", 0.55, False, memory("body", "trl_pre", "peak_rss_bytes")),
    Goal("`v32k`: peak RSS of precomputed TRL's", 0.55, False, memory("v32k", "trl_pre", "peak_rss_bytes")),
    Goal("`v128k`: peak RSS of precomputed TRL's", 0.55, False, memory("v128k", "trl_pre", "peak_rss_bytes")),
    Goal("FLOPs of matrix products over the least", 1.05, False, products("tiny")),
    Goal("scoring against padded batches as they arrive", 2.5, True, scoring("pipeline_32")),
    Goal("scoring against infinity, service against service", 2.0, True, scoring("infinity")),
    Goal("scoring against vLLM, in process", 1.5, True, beside_vllm("in_process", "layout", "vllm")),
    Goal("scoring against vLLM, service against service", 1.8, True, beside_vllm("service", "service", "vllm_server")),
    Goal(
        "the scorer's layout against padded batches in the same process",
        2.5,
        True,
        over("layouts", "samples", "fp32", base=PADDED, own="shared prompts"),
    ),
    *(
        Goal(
            f"service against its engine in process, 32 pairs a message, by {clock}",
            0.95,
            True,
            over("engine", "samples", "service", base="engine", own="service, 32 pairs a message", field=field),
        )
        for clock, field in (("CPU-seconds", "cpu_s"), ("wall", "wall_s"))
    ),
    Goal("client's CPU of a pair, 32 pairs a message", 35, False, client_cost, " us"),
    Goal("waiting for live margins, scorer 50 ms away, of step time", 3, False, live_margins, " %"),
    Goal("two replicas against one, by CPU-seconds of the busier", 1.8, True, two_replicas),
    Goal("two replicas against one, by wall", 1.8, True, two_replicas_by_wall),
    Goal("traffic of the busier replica over half", 15, False, uneven_traffic, " %"),
)


def _valid(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variants of a run that counts."""
    if entry["void"]:
        raise KeyError(f"void: {entry['void']}")
    variants: Mapping[str, Any] = entry["variants"]
    return variants


def goals_table(sections: Sections) -> Table:
    return [["what", "goal", "measured (rounds)", "reached"], *(goal.row(sections) for goal in GOALS)]


def training_table(sections: Sections) -> Table:
    rows = [
        ["model", "variant", "pairs per CPU-s", "ours over it", "activation peak MiB", "peak RSS MiB", "last loss"],
    ]
    for model, entry in sections["train"].items():
        pairs = entry["task"]["batch"] * entry["task"]["steps"]
        for name, variant in entry["variants"].items():
            mid = {field: median(each[field] for each in variant["rounds"]) for field in _FIELDS}
            rows.append(
                [
                    f"`{model}`",
                    f"`{name}`",
                    f"{pairs / mid['cpu_s']:.2f}",
                    "1" if name == OURS else str(ratio(entry["variants"], name, OURS, "cpu_s")),
                    f"{mid['activation_bytes'] / MIB:.0f}",
                    f"{mid['peak_rss_bytes'] / MIB:.0f}",
                    f"{variant['rounds'][-1]['losses'][-1]:.6f}",
                ]
            )
    return rows


_FIELDS = ("cpu_s", "activation_bytes", "peak_rss_bytes")


def flops_table(sections: Sections) -> Table:
    rows = [["model", "way", "matrix products, MFLOP per pair", "over the least", "with attention, over the least"]]
    for model, ways in sections["flops"].items():
        for name, way in ways.items():
            over = [f"{way['products_over_least']:.2f}", f"{way['over_least']:.2f}"]
            rows.append(
                [f"`{model}`", "least" if name == "least" else f"`{name}`", f"{way['products_mflop']:.0f}", *over]
            )
    return rows


def work_table(sections: Sections) -> Table:
    rows = [["prompt / response", "tokens per pair: padded, sorted, padding-free, shared", "7 % head", "40 % head"]]
    for entry in sections["work"]:
        tokens = ", ".join(f"{count:.0f}" for count in entry["tokens_per_pair"].values())
        over = [
            ", ".join(f"{each:.2f}" for each in ways.values()) for ways in entry["flop_ratio_by_head_share"].values()
        ]
        rows.append([entry["shape"], tokens, *over])
    return rows


def scoring_table(sections: Sections) -> Table:
    entry = sections["score"]
    rows = [["way", "pairs per CPU-s", "ours over it", "largest difference of a score"]]
    for name, variant in entry["variants"].items():
        rate = entry["task"]["pairs"] / median(each["cpu_s"] for each in variant["rounds"])
        over = "1" if name == "service" else str(ratio(entry["variants"], name, "service", "cpu_s"))
        difference = entry["score_difference"].get(name)
        rows.append([f"`{name}`", f"{rate:.2f}", over, "" if difference is None else f"{difference:.0e}"])
    return rows + [[f"`{name}`", f"skipped: {reason}", "", ""] for name, reason in entry["skipped"].items()]


def vllm_table(sections: Sections) -> Table:
    entry = sections["vllm"]
    rows = [["where", "way", "pairs per CPU-s", "ours over it", "largest difference of a score"]]
    if "skipped" in entry:
        return [*rows, ["", "`vllm`", f"skipped: {entry['skipped']}", "", ""]]
    for side in ("in_process", "service"):
        first = next(iter(entry[side]["variants"]))
        for name, variant in entry[side]["variants"].items():
            rate = entry[side]["task"]["pairs"] / median(each["cpu_s"] for each in variant["rounds"])
            over = "1" if name == first else str(ratio(entry[side]["variants"], name, first, "cpu_s"))
            apart = entry[side]["score_difference"].get(name)
            difference = "" if apart is None else f"{apart:.0e}"
            rows.append([side.replace("_", " "), f"`{name}`", f"{rate:.2f}", over, difference])
    return rows


def service_table(sections: Sections) -> Table:
    """What the reward service does by itself, of the sections that were run."""
    rows = [["what", "by CPU-seconds", "by wall"]]
    for name, way in (("shared prompts", "shared prompts"), ("packed by 8 pairs", PACKED)):
        for dtype in sections.get("layouts", {"samples": {}})["samples"]:
            title = f"{name}, {dtype}, against padded batches of 32 as they arrive"
            rows.append([title, *_clocks(sections, "layouts", "samples", dtype, base=PADDED, own=way)])
    for size in ("32 pairs", "1 pair") if "engine" in sections else ():
        title = f"service against its engine in process, all pairs in flight, {size} a message"
        ratios = _clocks(sections, "engine", "samples", "service", base="engine", own=f"service, {size} a message")
        rows.append([title, *ratios])
    if "replicas" in sections:
        title = "two replicas against one, each on its core"
        rows.append([title, str(two_replicas(sections)), str(two_replicas_by_wall(sections))])
    for way, samples in sections.get("rpc", {"ways": {}})["ways"].items():
        cost, rate = (spread([each[field] for each in samples]) for field in ("client_cpu_us_per_pair", "pairs_per_s"))
        title = f"a pair's way there and back, {way}"
        rows.append([title, f"{cost.median:.0f} us of the client", f"{rate.median:,.0f} pairs a second"])
    if "margins" in sections:
        title = "live margins against known ones, the scorer 50 ms away"
        rows.append([title, f"{_live_cost(sections)} %", f"waited {live_margins(sections).span} % of it"])
    return rows


def _clocks(sections: Sections, section: str, *path: str, base: str, own: str) -> list[str]:
    """Ratios by CPU-seconds and by wall."""
    return [str(over(section, *path, base=base, own=own, field=field)(sections)) for field in ("cpu_s", "wall_s")]


def _live_cost(sections: Sections) -> str:
    """CPU-seconds of steps with live margins over those with known ones, in percent above them, all rounds."""
    runs = sections["margins"]["results"]
    more = [
        100 * (live["cpu_s"] / known["cpu_s"] - 1)
        for live, known in zip(runs["live"], runs["precomputed"], strict=True)
    ]
    return f"{median(more):+.1f} ({min(more):+.1f} to {max(more):+.1f})"


def growth_table(sections: Sections) -> Table:
    rows = [["over", "from, to", "CPU-s", "slope (last)", "memory MiB", "slope (last)"]]
    for curve, points in sections["growth"].items():
        cells = [curve, f"{points[0][curve]:,.0f} to {points[-1][curve]:,.0f}"]
        for field, scale, digits in (("cpu_s", 1, 2), ("activation_bytes", MIB, 0)):
            values = [point[field] / scale for point in points]
            cells.append(f"{values[0]:.{digits}f} to {values[-1]:.{digits}f}")
            cells.append(f"{growth.slope(points, curve, field):.2f} ({growth.steepest(points, curve, field):.2f})")
        rows.append(cells)
    return rows


def conditions_table(results: Sequence[Mapping[str, Any]]) -> Table:
    rows = [["section", "started (UTC)", "took s", "load average before, after", "OMP threads, wait policy", "nice"]]
    for name, section in ((name, section) for result in results for name, section in result["sections"].items()):
        before, after = section["before"], section["after"]
        load = f"{before['load_average'][0]:.1f}, {after['load_average'][0]:.1f}"
        title = f"{name}: {', '.join(section['result'])}" if name == "train" else name
        rows.append(
            [title, section["started"], f"{section['took_s']:.0f}", load, "1, PASSIVE", str(before.get("niceness", ""))]
        )
    return rows


def join(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each section found."""
    sections: dict[str, Any] = {}
    for name, section in ((name, section) for result in results for name, section in result["sections"].items()):
        sections[name] = sections.get(name, {}) | section["result"] if name == "train" else section["result"]
    return sections


def tables(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Table]]:
    """All tables of the sections that were run."""
    sections = join(results)
    yield "goals", goals_table(sections)
    made = {
        "train": training_table,
        "flops": flops_table,
        "work": work_table,
        "score": scoring_table,
        "vllm": vllm_table,
        "growth": growth_table,
    }
    yield from ((name, make(sections)) for name, make in made.items() if name in sections)
    yield "service", service_table(sections)
    yield "conditions", conditions_table(results)


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, *rows = table
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def fill(document: str, made: Sequence[tuple[str, Table]]) -> str:
    """The document with its tables replaced.

    Raises:
        ValueError: It has no place for one.
    """
    for name, table in made:
        place = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(document):
            raise ValueError(f"the document has no place for the table {name} (give it `<!-- table {name} -->`)")
        text = markdown(table) + "\n"
        document = place.sub(lambda match, text=text: match[1] + text + match[2], document)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--document", type=Path)
    options = parser.parse_args()
    results = [json.loads(path.read_text()) for path in options.results]
    made = list(tables(results))
    if options.document is None:
        print("\n\n".join(f"{name}\n\n{markdown(table)}" for name, table in made))
        return
    options.document.write_text(fill(options.document.read_text(), made))
    images = options.document.parent / "images"
    sections = join(results)
    for name, plot in (("train", plot_training), ("score", plot_scoring), ("growth", plot_growth)):
        if name in sections:
            plot(sections[name], images / f"performance-{name}.png")


if __name__ == "__main__":
    main()
