"""Time and peak memory of ``pv.fit`` and of the log evidence against the size of the problem.

    python benchmarks/scaling.py --picture scaling.png

One size varies at a time, from 784-400-20, 8000 rows and batches of 128: rows, latent dimensions,
batch size and processes for an epoch of ``fit``, draws for ``diagnostics.log_evidence`` of 100
rows. Every point is a process of its own on simulated data; after a warm-up the median of several
epochs, or evaluations, is told. Peak memory is the largest resident memory less that just before
the call, when libraries, data and network are there already (Linux).

The floor of the time is the matrix multiplications alone at the rate of a large one, measured in
the same run on all threads. That of the memory is one gradient and Adam's two moments. Two
processes share the threads: each has half of them.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import floor
import pictures
from peers.problem import Size
from tables import machine, markdown
from workers import Worker, Workers, alternate

SIZE, ROWS, BATCH, EVALUATED = Size(784, 400, 20), 8000, 128, 100
MEGABYTE = 2**20
BYTES = 4


class Point(NamedTuple):
    """One run."""

    run: str = "fit"
    size: Size = SIZE
    num_data: int = ROWS
    batch: int = BATCH
    draws: int = 0
    processes: int = 1
    threads: int = 0


class Panel(NamedTuple):
    """What varies, and the runs in which it does."""

    name: str
    what: str
    points: dict[str, Point]


def panels(threads: int, *, smoke: bool) -> list[Panel]:
    """The runs; a few small ones with ``smoke``."""
    if smoke:
        small = Point(size=Size(16, 8, 2), num_data=64, batch=16)
        evidence = small._replace(run="evidence", draws=10)
        return [
            Panel("rows N", "epoch of fit", {"64": small}),
            Panel("draws S", "log evidence", {"10": evidence}),
        ]
    each = max(1, threads // 2)
    evidence = Point(run="evidence", num_data=EVALUATED)
    return [
        Panel(
            "rows N",
            "epoch of fit",
            {str(n): Point(num_data=n) for n in (2000, 8000, 32000)},
        ),
        Panel(
            "latent dimensions k",
            "epoch of fit",
            {str(k): Point(size=SIZE._replace(latent_dim=k)) for k in (2, 8, 32, 128)},
        ),
        Panel(
            "batch size",
            "epoch of fit",
            {str(b): Point(batch=b) for b in (32, 128, 512, 2048)},
        ),
        Panel(
            "draws S",
            "log evidence",
            {str(s): evidence._replace(draws=s) for s in (100, 1000, 10000)},
        ),
        Panel(
            "processes",
            "epoch of fit, batch 512",
            {
                f"{p} with {t} thread{'s' if t > 1 else ''}": Point(
                    batch=512, processes=p, threads=t
                )
                for p, t in dict.fromkeys([(1, each), (1, threads), (2, each)])
            },
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table and draw one picture."""
    parser = argparse.ArgumentParser(description="Time and peak memory against sizes.")
    parser.add_argument("--rounds", type=int, default=3, help="timed epochs or evaluations")
    parser.add_argument("--compiled", action="store_true", help="fit with compile=True")
    parser.add_argument("--only", nargs="+", help="panels whose name has one of these words")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    parser.add_argument("--smoke", action="store_true", help="a few small runs")
    options = parser.parse_args(arguments)
    threads = int(os.environ["OMP_NUM_THREADS"])
    chosen = [
        panel
        for panel in panels(threads, smoke=options.smoke)
        if not options.only or any(word in panel.name for word in options.only)
    ]
    figure, axes = pictures.panels(2 * len(chosen), columns=2, height=2.7)
    rows: list[list[str]] = []
    for number, panel in enumerate(chosen):
        rate = floor.sgemm_rate()
        found = {}
        for label, point in panel.points.items():
            print(f"{panel.what}, {panel.name}: {label}", file=sys.stderr)
            found[label] = measured(point, options)
        floors = {
            label: (work(point) / rate, memory_floor(point))
            for label, point in panel.points.items()
        }
        for label, figures in found.items():
            seconds, megabytes = floors[label]
            rows.append(
                [
                    panel.what,
                    panel.name,
                    label,
                    f"{figures['seconds']:.3f}",
                    f"{min(figures['every']):.3f}",
                    f"{max(figures['every']):.3f}",
                    f"{seconds:.3f}",
                    f"{figures['seconds'] / seconds:.2f}",
                    f"{figures['peak']:.0f}",
                    f"{megabytes:.0f}" if megabytes else "",
                ]
            )
        drawn(axes[2 * number : 2 * number + 2], panel, found, floors)
    header = ["run", "what varies", "value", "median s", "min", "max"]
    print(markdown([*header, "floor s", "s / floor", "peak MB", "floor MB"], rows, words=3))
    compiled = ", fit compiled" if options.compiled else ""
    print(f"\n{machine()}; {options.rounds} timed runs of each point{compiled}")
    print(f"otherwise {SIZE}, N = {ROWS}, batch {BATCH}; log evidence of {EVALUATED} rows")
    pictures.write(figure, options.picture)


def measured(point: Point, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run in a process, or in several, of its own."""
    settings = {**point._asdict(), "rounds": options.rounds, "compiled": options.compiled}
    threads = {"OMP_NUM_THREADS": str(point.threads)} if point.threads else {}
    worker = Worker(
        "scaling", "peers.scaling_point", settings, processes=point.processes, environment=threads
    )
    with Workers([worker]):
        return alternate([worker], rounds=1, warm_up=0)["scaling"][0]


def work(point: Point) -> int:
    """Operations of the matrix multiplications of a run."""
    layers = floor.vae_layers(*point.size)
    if point.run == "fit":
        steps, rest = divmod(point.num_data, point.batch)
        one, last = (floor.flops(floor.training_products(layers, b)) for b in (point.batch, rest))
        return steps * one + last
    encoder, decoder = layers[:2], layers[2:]
    draws = floor.forward_products(decoder, point.num_data * point.draws)
    return floor.flops([*floor.forward_products(encoder, point.num_data), *draws])


def memory_floor(point: Point) -> float:
    """Megabytes of a gradient and Adam's moments; nothing for an evaluation."""
    if point.run != "fit":
        return 0.0
    return 3 * BYTES * floor.num_params(floor.vae_layers(*point.size)) / MEGABYTE


def drawn(
    axes: Sequence[Any],
    panel: Panel,
    found: dict[str, dict[str, Any]],
    floors: dict[str, tuple[float, float]],
) -> None:
    """Time and memory of one panel."""
    time_ax, memory_ax = axes
    labels = list(found)
    if all(label.isdigit() for label in labels):
        x = [float(label) for label in labels]
        seconds = [found[label]["seconds"] for label in labels]
        lines = {
            panel.what: (x, seconds),
            "arithmetic floor": (x, [floors[label][0] for label in labels]),
        }
        pictures.curves(
            time_ax,
            lines,
            x_label=panel.name,
            y_label="seconds",
            logarithmic="xy" if max(seconds) > 4 * min(seconds) else "x",
            ours=[panel.what],
        )
        if max(seconds) <= 4 * min(seconds):
            time_ax.set_ylim(bottom=0, top=1.4 * max(seconds))
        peaks = {panel.what: (x, [found[label]["peak"] for label in labels])}
        if any(floors[label][1] for label in labels):
            peaks["gradient and moments (floor)"] = (x, [floors[label][1] for label in labels])
        pictures.curves(
            memory_ax,
            peaks,
            x_label=panel.name,
            y_label="peak MB",
            logarithmic="x",
            ours=[panel.what],
        )
        memory_ax.set_ylim(bottom=0, top=1.5 * max(figures["peak"] for figures in found.values()))
        return
    pictures.bars(
        time_ax,
        {label: figures["every"] for label, figures in found.items()},
        label=f"seconds, {panel.what}",
        floor=floors[labels[0]][0],
        ours=labels,
    )
    pictures.bars(
        memory_ax,
        {label: [figures["peak"]] for label, figures in found.items()},
        label="peak MB of each process",
        floor=floors[labels[0]][1],
        floor_label="gradient and moments",
        ours=labels,
        digits=0,
    )


if __name__ == "__main__":
    main()
