"""Stage `plots`: rows as tables for `dvc plots`, and single prompts for the report.

Reads   --settings, resolved settings of the model; --lens; --sweep; --suite
Writes  --delta_kl, --earliness and --training, CSVs; --detail, JSON
"""

from lensmith import command
from lensmith.edge import params
from lensmith.judge import plots


def main() -> None:
    outs = ("delta_kl", "earliness", "training", "detail")
    args = command.paths(__doc__, "settings", "lens", "sweep", "suite", *outs)
    settings = params.read_resolved(args.settings)
    plots.run(settings, args.lens, args.sweep, args.suite, *(getattr(args, name) for name in outs))


if __name__ == "__main__":
    command.run(main)
