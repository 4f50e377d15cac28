"""Figure of the search for a mix of precisions."""

from __future__ import annotations

import os

from isnet_trt.export.quantise.sensitivity import Mix

_LISTED = 12


def draw(mix: Mix, path: str | os.PathLike[str]) -> None:
    """Write a PNG or SVG. Left: points lost over the share of multiply-adds in eight bits; right: points lost by the
    blocks that cost most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    search, ranking = figure.subplots(1, 2, width_ratios=(1, 1.2))
    steps = sorted(mix.steps, key=lambda step: step.share)
    search.plot([100 * s.share for s in steps], [s.drop for s in steps], "o-", color="tab:blue")
    for step in steps:
        search.annotate(f"{step.kept} kept", (100 * step.share, step.drop), xytext=(4, 4), textcoords="offset points")
    search.axhline(mix.max_drop, color="tab:red", linestyle="--", label=f"bound {mix.max_drop:g}")
    search.set(xlabel="multiply-adds in eight bits, %", ylabel=f"{mix.unit} lost, points", title=mix.flavour)
    search.legend()
    worst = mix.ranking[:_LISTED][::-1]
    colours = ["tab:red" if entry.block in mix.skip else "tab:blue" for entry in worst]
    ranking.barh([entry.block for entry in worst], [entry.drop for entry in worst], color=colours)
    ranking.set(
        xlabel=f"{mix.ranked_by or mix.unit} lost by the block alone, points", title="most damaging blocks (red: kept)"
    )
    figure.savefig(path, dpi=120)
