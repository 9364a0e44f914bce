"""Evaluations side by side: a table on screen, a JSON object, a picture.

It knows no recommender and runs none; matplotlib is imported only for the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from m6rec.config import plain
from m6rec.errors import DataError, needs
from m6rec.evaluation.bootstrap import Comparison, Interval, compare, intervals
from m6rec.evaluation.result import Evaluation, PairEvaluation
from m6rec.evaluation.slices import slices

#: Metric families in which less is better.
LOWER_IS_BETTER = ("log_loss", "ece", "brier")
OURS, OTHERS, CEILING = "#2f6f8f", "#b9c4cc", "#c2552d"


@dataclass(frozen=True)
class Report:
    """Evaluations of one split under one protocol.

    Args:
        rows: one per recommender, in the order to show.
        title: over the table and the picture.
        ours: name of the row that the others are compared with; empty = no comparisons.
        ceiling: an evaluation that no model can beat (the oracle of a sample world); drawn as a line.
        draws: bootstrap resamples.
        seed: of the bootstrap.
    """

    rows: Sequence[Evaluation | PairEvaluation]
    title: str = ""
    ours: str = ""
    ceiling: Evaluation | PairEvaluation | None = None
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if not names or len(set(names)) < len(names):
            raise DataError(f"got rows named {names}, expected at least one, and every name once")
        if self.ours and self.ours not in names:
            raise DataError(f"got ours={self.ours!r}, expected one of {', '.join(names)}")
        if len({row.metrics for row in self._everyone}) > 1:
            raise DataError("got rows with different metrics, expected one protocol: the same candidates and cutoffs")

    @property
    def _everyone(self) -> list[Evaluation | PairEvaluation]:
        return [*self.rows, *([self.ceiling] if self.ceiling else [])]

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Row name -> metric -> mean and 95 % interval over users."""
        return {row.name: intervals(row, self.draws, seed=self.seed) for row in self._everyone}

    def comparisons(self, metric: str) -> list[Comparison]:
        """Return ours against every other row, paired by user (nothing where no row is ours)."""
        ours = next((row for row in self.rows if row.name == self.ours), None)
        if ours is None:
            return []
        return [compare(ours, row, metric, self.draws, seed=self.seed) for row in self.rows if row is not ours]

    def table(self, metrics: Sequence[str] = ()) -> Table:
        """Return the table to print: mean and half the interval; the best of a column is bold.

        Args:
            metrics: columns; by default every one at the middle cutoff, or every pair metric.
        """
        columns = list(metrics) or self._main_metrics()
        table = Table(title=self.title or None, caption=self._caption(), box=None, pad_edge=False, header_style="dim")
        table.add_column("", no_wrap=True)
        for metric in columns:
            table.add_column(metric, justify="right", no_wrap=True)
        best = {metric: self._best(metric) for metric in columns}
        for row in self._everyone:
            cells = [_cell(self.intervals[row.name][metric], row.name == best[metric]) for metric in columns]
            style = "italic" if row is self.ceiling else ""
            table.add_row(Text(row.name, style="bold" if row.name == self.ours else style), *cells)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold (NaN becomes null)."""
        main = self._main_metrics()[0]
        report = {
            "title": self.title,
            "protocol": self.rows[0].protocol,
            "interval": f"95 %, {self.draws} bootstrap resamples of users, seed {self.seed}",
            "rows": {row.name: self._row(row) for row in self._everyone},
            "comparisons": [plain(comparison) for comparison in self.comparisons(main)],
        }
        if self.ceiling:
            report["ceiling"] = self.ceiling.name
        cleaned: dict[str, Any] = _without_nan(report)
        return cleaned

    def _row(self, row: Evaluation | PairEvaluation) -> dict[str, Any]:
        known = self.intervals[row.name]
        values: dict[str, Any] = {
            "metrics": {metric: interval.mean for metric, interval in known.items()},
            "intervals": {metric: [interval.low, interval.high] for metric, interval in known.items()},
            "seconds": row.seconds,
        }
        if isinstance(row, Evaluation):
            values["metrics"] |= row.beyond()
            values["slices"] = {name: {"queries": len(part), **part.means()} for name, part in slices(row).items()}
        return values

    def plot(self, path: Path | str, metric: str = "") -> None:
        """Write a PNG: one bar a row with its interval, the ceiling as a line.

        Args:
            path: file to write.
            metric: what to draw; by default the first column of the table.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        with needs("bench"):
            from matplotlib.figure import Figure
        metric = metric or self._main_metrics()[0]
        shown = sorted(self.rows, key=lambda row: self.intervals[row.name][metric].mean)
        known = [self.intervals[row.name][metric] for row in shown]
        figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(shown)), layout="constrained", dpi=160)
        axes = figure.add_subplot()
        means = [interval.mean for interval in known]
        spread = [[i.mean - i.low for i in known], [i.high - i.mean for i in known]]
        colours = [OURS if row.name == self.ours else OTHERS for row in shown]
        axes.barh([row.name for row in shown], means, xerr=spread, color=colours, ecolor="#555", height=0.62)
        for place, interval in enumerate(known):
            axes.annotate(f" {interval.mean:.4f}", (interval.high, place), va="center", fontsize=8, color="#333")
        if self.ceiling:
            top = self.intervals[self.ceiling.name][metric].mean
            axes.axvline(top, color=CEILING, linestyle="--", linewidth=1)
            axes.annotate(
                f"{self.ceiling.name} {top:.4f}", (top, 1), xycoords=("data", "axes fraction"), ha="right", va="bottom",
                fontsize=8, color=CEILING,
            )  # fmt: skip
        axes.set_xlabel(metric)
        axes.set_title(self.title, loc="left", fontsize=10, pad=16 if self.ceiling else 6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.16)
        figure.savefig(path)

    def _main_metrics(self) -> list[str]:
        row = self.rows[0]
        if isinstance(row, PairEvaluation):
            return list(row.metrics)
        middle = row.cutoffs[(len(row.cutoffs) - 1) // 2]
        return [f"{family}@{middle}{row.suffix}" for family in ("ndcg", "recall", "hr", "mrr")]

    def _best(self, metric: str) -> str:
        sign = -1 if metric.startswith(LOWER_IS_BETTER) else 1
        known = {row.name: sign * self.intervals[row.name][metric].mean for row in self.rows}
        return max(known, key=lambda name: -math.inf if math.isnan(known[name]) else known[name])

    def _caption(self) -> str:
        words = [f"{key.replace('_', ' ')}: {value}" for key, value in self.rows[0].protocol.items()]
        return "; ".join([*words, "± half of the 95 % interval over users"])


def _cell(interval: Interval, best: bool) -> Text:
    if math.isnan(interval.mean):
        return Text("-", style="dim")
    text = Text(f"{interval.mean:.4f}", style="bold" if best else "")
    if math.isfinite(interval.low):
        text.append(f" ±{(interval.high - interval.low) / 2:.4f}", style="dim not bold")
    return text


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
