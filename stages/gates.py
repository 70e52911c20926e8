"""Stage `gates`: KPIs, their intervals, and the verdict of each gate.

Reads   --settings, resolved settings of the model; --sweep; --suite
Writes  --metrics, flat JSON; --kl and --cosine, curves by depth; --seal, their sha256
"""

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.judge import gates
    from lensmith.settings import sections

    args = command.paths(__doc__, "settings", "sweep", "suite", "metrics", "kl", "cosine", "seal")
    settings = sections.read_resolved(args.settings)
    seals.check(args.sweep, args.suite)
    gates.run(settings, args.sweep, args.suite, args.metrics, args.kl, args.cosine)
    seals.seal_files(args.seal, (args.metrics, args.kl, args.cosine))


if __name__ == "__main__":
    command.run_stage(main)
