"""What weights cost on their way: on a slow line, beside peers on one machine, and at the swap."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from user_system.cluster.bench import net_weights_line as line
from user_system.cluster.bench import net_weights_peers as peers
from user_system.cluster.bench import net_weights_swap as swap
from user_system.cluster.bench.figures import Figure, Goal, judged, quantile
from user_system.cluster.bench.options import Options
from user_system.cluster.lab import available

LINE, CUT, PEER, SWAP = (
    "net.weights_line_ratio",
    "net.weights_resent_chunks",
    "net.weights_vs_best_peer",
    "net.swap_pause_ms",
)
IDS = (LINE, CUT, PEER, SWAP)


def measure(options: Options) -> Iterator[Figure]:
    """Measure what is asked for, in a directory that is removed afterwards."""
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="weights-", dir=options.directory) as name:
        directory = Path(name).resolve()
        if options.wants(LINE, CUT):
            yield from _line(directory / "line", quick=options.quick)
        if options.wants(PEER):
            yield _peer(directory / "peers", quick=options.quick)
        if options.wants(SWAP):
            yield _swap(directory / "swap", quick=options.quick)


def _line(directory: Path, *, quick: bool) -> Iterator[Figure]:
    if why := available():
        for name in (LINE, CUT):
            yield Figure(name, None, ok=False, note=why)
        return
    size = 2_000_000 if quick else 20_000_000
    whole = line.run(directory / "whole", size, cuts=0)
    killed = line.run(directory / "killed", size, cuts=3)
    silence_s = 1.0 if quick else line.SILENCE_S
    silent = line.run(directory / "silent", size, 3, silence_s)
    yield judged(
        LINE,
        whole.seconds * line.RATE_BPS / 8 / size,
        Goal("<=", 1.15),
        reference=f"{size / 1e6:g} MB at 20 Mbit/s: {size * 8 / line.RATE_BPS:.1f} s",
        note=f"round trip 40 ms; {whole.seconds:.2f} s until it can be loaded, float32 that does "
        f"not compress well: {whole.came / 1e6:.2f} MB came",
    )
    yield judged(
        CUT,
        max(0, killed.came - whole.came, silent.came - whole.came) / line.CHUNK / 3,
        Goal("<=", 1.0),
        "chunks per cut",
        note=f"the robot host's process killed 3 times: {killed.came} bytes came in its lives "
        f"together; the line silent 3 times for {silence_s:g} s: {silent.came}; {whole.came} "
        f"without a cut; chunks of {line.CHUNK}",
    )


def _peer(directory: Path, *, quick: bool) -> Figure:
    found = peers.run(directory, rounds=3 if quick else 40)
    middle = {name: 1e3 * median(times) for name, times in found.items()}
    best = min(middle["ray"], middle["grpc"])
    return judged(
        PEER,
        middle["ours"] / best,
        Goal("<=", 1.0),
        reference=f"Ray object store {middle['ray']:.1f} ms, plain gRPC stream "
        f"{middle['grpc']:.1f} ms",
        note=f"2.5 MB in 40 tensors, 4 edges: {middle['ours']:.1f} ms where they share the store's "
        f"disk, {middle['wire']:.1f} ms sent over mutual TLS; medians of {len(found['ours'])} "
        f"rounds in turns, load {os.getloadavg()[0]:.1f}",
    )


def _swap(directory: Path, *, quick: bool) -> Figure:
    rounds = 5 if quick else 100
    small, large = (swap.run(directory / str(n), hidden, rounds) for n, hidden in swap.SIZES)
    worst = {
        name: 1e3 * (quantile(times, 0.99) or 0.0)
        for name, times in (("demo", small), ("2.5 MB", large))
    }
    return judged(
        SWAP,
        max(worst.values()),
        Goal("<=", 5.0),
        "ms",
        note="; ".join(
            f"{name}: p50 {1e3 * median(times):.2f}, p99 {worst[name]:.2f} ms"
            for name, times in (("demo", small), ("2.5 MB", large))
        )
        + f"; what {rounds} swaps added to the longest time between two plans",
    )
