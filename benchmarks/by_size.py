"""How results for several record sizes are shown: as tables with a column a size, and as a plot."""

from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.harness import SUBJECTS, Result

# What the eye has to tell apart: we in front, the floor behind, C libraries in solid lines and Python's dashed.
STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": "#d62728", "linewidth": 2.6, "zorder": 5},
    "floor": {"color": "#999999", "linewidth": 1.2},
    "native": {"color": "#1f77b4"},
    "system": {"color": "#17becf"},
    "ipsec_mb": {"color": "#2ca02c"},
    "pyca": {"color": "#1f77b4", "linestyle": "--"},
    "google_tink": {"color": "#ff7f0e", "linestyle": "--"},
    "pycryptodome": {"color": "#9467bd", "linestyle": "--"},
    "esdk": {"color": "#8c564b", "linestyle": "--"},
}


def _ns(result: Result) -> float:
    # Minima, for what disturbs a run only adds to it.
    return result.minimum / result.records


def _short(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _panels(results: list[Result]) -> Iterator[tuple[bool, int, dict[str, dict[int, Result]]]]:
    """Yield opening, threads, and by subject and size what came out."""

    def panel(result: Result) -> tuple[bool, int]:
        return result.row.options["opening"], result.row.options["threads"]

    for (opening, threads), group in groupby(sorted(results, key=panel), panel):
        subjects: dict[str, dict[int, Result]] = {}
        for result in group:
            subjects.setdefault(result.row.subject, {})[result.row.options["size"]] = result
        yield opening, threads, subjects


def tables(results: list[Result]) -> Iterator[Table]:
    """Lay out nanoseconds a record, and below how many times ours that is."""
    for opening, threads, subjects in _panels(results):
        title = f"{'open' if opening else 'seal'} rows, {threads} thread{'s'[: threads - 1]}"
        layout = Table(
            title=f"{title}: ns/record (minima), and times tapeseal's, by record size",
            title_justify="left",
            title_style="bold",
            pad_edge=False,
        )
        layout.add_column("", no_wrap=True)
        ours = subjects["ours"]
        for size in ours:
            layout.add_column(f"{size}", justify="right", no_wrap=True)
        for subject, by_size in subjects.items():
            name = SUBJECTS[subject].title
            if any(result.missing for result in by_size.values()):
                layout.add_row(f"[dim]{name}: not installed")
                continue
            cells = [
                f"{_short(_ns(result))}\n"
                + (f"[dim]{_short(_ns(result) / _ns(ours[size]))}x[/]" if by_size != ours else "")
                for size, result in by_size.items()
            ]
            layout.add_row(f"[cyan]{name}" if by_size is ours else name, *cells)
        yield layout


def plot(results: list[Result], directory: Path) -> None:
    """Draw nanoseconds a record against size, one thread, into rows.png and rows.svg."""
    import matplotlib as mpl

    mpl.use("agg")
    # Text as text, and ids that do not change: a small file that differs where the numbers do.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rows"})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    alone = [panel for panel in _panels(results) if panel[1] == 1]
    figure, axes = plt.subplots(1, len(alone), figsize=(11, 5), sharey=True, layout="constrained")
    for axis, (opening, _, subjects) in zip(axes, alone, strict=True):
        for subject, by_size in subjects.items():
            if any(result.missing for result in by_size.values()):
                continue
            values = [_ns(result) for result in by_size.values()]
            style = {"linewidth": 1.4, "marker": "o", "markersize": 3, **STYLES[subject]}
            axis.plot(list(by_size), values, label=SUBJECTS[subject].title, **style)
            if subject == "floor":
                axis.fill_between(list(by_size), values, 1, color="#eeeeee", linewidth=0)
        axis.set(
            title=f"{'Opening' if opening else 'Sealing'} records one by one, one thread",
            xlabel="bytes a record",
            xscale="log",
            yscale="log",
            ylim=(3, None),
        )
        sizes = list(subjects["ours"])
        crowded = {a for a, b in pairwise(sizes) if b < 1.2 * a}
        axis.set_xticks(sizes, ["" if size in crowded else f"{size}" for size in sizes])
        axis.tick_params(axis="x", labelrotation=45, labelsize=8)
        axis.xaxis.minorticks_off()
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.grid(which="major", color="#dddddd", linewidth=0.6)
    axes[0].set_ylabel("ns a record")
    handles, labels = axes[0].get_legend_handles_labels()
    slowest_first = sorted(
        zip(handles, labels, strict=True), key=lambda line: -line[0].get_ydata()[0]
    )
    handles, labels = zip(*slowest_first, strict=True)
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.savefig(directory / "rows.svg", metadata={"Date": None})
    figure.savefig(directory / "rows.png", dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)
