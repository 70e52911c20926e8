"""Stage `plots`: rows as tables for `dvc plots`, and single prompts for the report.

Reads   --settings, resolved settings of the model; --lens; --sweep; --suite
Writes  --delta_kl, --earliness and --training, CSVs; --detail, JSON; --seal, their sha256
"""

from lensmith import command
from lensmith.edge import params, sealed
from lensmith.judge import plots


def main() -> None:
    outs = ("delta_kl", "earliness", "training", "detail")
    args = command.paths(__doc__, "settings", "lens", "sweep", "suite", *outs, "seal")
    settings = params.read_resolved(args.settings)
    sealed.check(args.sweep, args.suite)
    sealed.check_files(args.lens / sealed.SUMS, (args.lens / "fit_log.csv", args.lens / "provenance.json"))
    written = [getattr(args, name) for name in outs]
    plots.run(settings, args.lens, args.sweep, args.suite, *written)
    sealed.seal_files(args.seal, written)


if __name__ == "__main__":
    command.run(main)
