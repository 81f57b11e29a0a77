"""`python -m benchmarks [--quick] [--json FILE] [--plot DIR] [NAME ...]`: the comparison, as tables a question."""

import argparse
import json
import os
import platform
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from benchmarks import by_size
from benchmarks.harness import SUBJECTS, MissingError, Result, Workers, measure, scratch_settings
from benchmarks.questions import QUESTIONS, Question, Results


def machine() -> dict[str, str]:
    """Say what the numbers were measured on."""
    processor = platform.processor() or platform.machine()
    description = Path("/proc/cpuinfo")
    if description.exists():
        names = [line for line in description.read_text().splitlines() if "model name" in line]
        processor = names[0].split(": ", 1)[1] if names else processor
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "system": platform.platform(),
        "processor": f"{processor}, {os.cpu_count()} cores",
        "huge pages": huge.read_text().strip() if huge.exists() else "unknown",
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _time(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def table(question: Question, results: list[Result]) -> Table:
    """Lay out the rows, those of one label together, each with its speed as a bar."""
    layout = Table(title=question.name, title_justify="left", title_style="bold", pad_edge=False)
    layout.add_column("", no_wrap=True)
    for heading in ("minimum", "median", "ns/record", "GB/s"):
        layout.add_column(heading, justify="right", no_wrap=True, min_width=8)
    layout.add_column("of 1st", justify="right", no_wrap=True)
    layout.add_column("tapeseal", justify="right", no_wrap=True)
    layout.add_column("", no_wrap=True)
    for label, group in groupby(results, lambda result: result.row.label):
        rows = list(group)
        layout.add_section()
        layout.add_row(f"[bold]{label}")
        present = [result for result in rows if not result.missing]
        ours = next((result for result in present if result.row.subject == "ours"), None)
        fastest = max((_speed(result) for result in present), default=0.0)
        for result in rows:
            title = f"  {SUBJECTS[result.row.subject].title}"
            if result.missing:
                layout.add_row(f"[dim]{title}: not installed")
                continue
            speed = _speed(result)
            layout.add_row(
                title,
                _time(result.minimum),
                _time(result.median) + ("[yellow] ~[/]" if result.unsteady else "  "),
                f"{result.median / result.records:.3g}" if result.records else "",
                f"{result.size / result.median:.3g}" if result.size else "",
                f"{speed / _speed(present[0]):.2f}",
                f"{_speed(ours) / speed:.3g} x" if ours and result is not ours else "",
                Bar(fastest, 0, speed, width=20, color="cyan" if result is ours else "blue"),
            )
    return layout


def _speed(result: Result) -> float:
    return (result.size or 1) / result.median


def measures(question: Question, by_median: Results, by_minimum: Results) -> list[dict[str, Any]]:
    """Compute the measures that have a target, but for those of what is not installed."""
    lines = []
    for wanted in question.measures:
        try:
            value = wanted.compute(by_median)
        except MissingError:
            continue
        lines.append(
            {
                "measure": wanted.text,
                "median": value,
                "minimum": wanted.compute(by_minimum),
                "target": f"{'>=' if wanted.at_least else '<='} {wanted.target:g} {wanted.unit}".strip(),
                "unit": wanted.unit,
                "met": wanted.met(value),
            }
        )
    return lines


def target_table(lines: list[dict[str, Any]]) -> Table:
    """Lay out the measures beside their targets."""
    layout = Table(title="targets", title_justify="left", title_style="bold", pad_edge=False)
    layout.add_column("")
    for heading in ("by medians", "by minima", "target", ""):
        layout.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        layout.add_row(
            line["measure"],
            f"{line['median']:.3g} {line['unit']}",
            f"{line['minimum']:.3g} {line['unit']}",
            line["target"],
            "[green]met[/]" if line["met"] else "[red]missed[/]",
        )
    return layout


def main() -> None:
    """Ask the named questions, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(QUESTIONS))
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds: does it run?"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers there")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="also draw rows.png and rows.svg there"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in QUESTIONS]
    if unknown:
        parser.error(f"no question named {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    report: dict[str, Any] = {"machine": machine(), "results": [], "measures": []}
    unsteady = 0
    with scratch_settings(arguments.quick) as settings:
        report["settings"] = asdict(settings)
        with Workers(settings) as workers, console.status("starting") as status:
            for name in arguments.names or QUESTIONS:
                question = QUESTIONS[name]
                facts = {
                    label: workers[subject].ask(do="fact", job=job, options=options)["value"]
                    for label, (subject, job, options) in question.facts.items()
                }
                results = [
                    result
                    for part in question.parts
                    for result in measure(part, workers, status.update)
                ]
                sized = [
                    result
                    for result in results
                    if "size" in result.row.options
                    and not {"large", "ahead"} & result.row.options.keys()
                ]
                for layout in by_size.tables(sized):
                    console.print(layout, "")
                others = [result for result in results if result not in sized]
                if others:
                    console.print(table(question, others), "")
                if sized and arguments.plot:
                    by_size.plot(sized, arguments.plot)
                report["results"] += [asdict(result) for result in results]
                unsteady += sum(result.unsteady for result in results if not result.missing)
                report["measures"] += measures(
                    question, Results(results, facts, "median"), Results(results, facts, "minimum")
                )
            report["versions"], missing = workers.versions, workers.missing
    console.print(target_table(report["measures"]), "")
    for title, facts in (("Machine", report["machine"]), ("Versions", report["versions"])):
        console.print(f"[bold]{title}")
        for name, value in facts.items():
            console.print(f"  {name}: {value}", highlight=False, markup=False)
    for name, how in missing.items():
        console.print(f"  {name}: {how}", highlight=False, markup=False)
    sizes = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    console.print(f"[bold]Settings[/]\n  {sizes}", highlight=False)
    if unsteady:
        console.print(
            f"\n{unsteady} of {len(report['results'])} rows are unsteady: other work disturbed this run, so its minima "
            "say more than its medians.",
            highlight=False,
        )
    console.print(
        "\nThe time of a run is the median, or minimum, of its rounds; ~ marks a median over 10 % above the minimum.\n"
        "'of 1st' is the speed beside the first row of the group, 'tapeseal' its speed beside this row.\n"
        "Only ratios within one run count.",
        highlight=False,
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
