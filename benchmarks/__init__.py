"""How fast microdb is, against what its users would pick instead. Run it by ``python -m benchmarks``; see README.md.

    __main__               the command
    suite                  which workloads there are, and in which order they run
    workloads/             what is measured, one module per kind
    peers/                 who is measured: one small class each, behind one Protocol
    crew, children         other processes: at work together, or alone in a fresh interpreter
    plots                  SVG, by matplotlib
    report                 Markdown and JSON; pure
    targets                what microdb is to reach, as data, and whether it does; pure
    results                what a measurement gives; pure
    contest                rounds in which everyone runs once; pure but for the clock
    data, draws, machine   records, keys to ask for, where it ran

Imports point down. Peers and plots are imported when they are used, so that the pure part needs no more than Python.
"""
