"""Stage `gates`: KPIs, their intervals, and the verdict of each gate.

Reads   --settings, resolved settings of the model; --sweep; --suite
Writes  --metrics, flat JSON; --kl and --cosine, curves by depth
"""

from lensmith import command
from lensmith.edge import params
from lensmith.judge import gates


def main() -> None:
    args = command.paths(__doc__, "settings", "sweep", "suite", "metrics", "kl", "cosine")
    settings = params.read_resolved(args.settings)
    gates.run(settings, args.sweep, args.suite, args.metrics, args.kl, args.cosine)


if __name__ == "__main__":
    command.run(main)
