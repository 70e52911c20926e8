"""Stage `plots`: rows as tables for `dvc plots`, and single prompts for the report.

Reads   --settings, resolved settings of the model; --lens; --sweep; --suite
Writes  --delta_kl, --earliness, --training and --rank_curve, CSVs; --detail, JSON; --seal, their sha256
"""

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.judge import plots
    from lensmith.settings import sections

    outs = ("delta_kl", "earliness", "training", "rank_curve", "detail")
    args = command.paths(__doc__, "settings", "lens", "sweep", "suite", *outs, "seal")
    settings = sections.read_resolved(args.settings)
    seals.check(args.sweep, args.suite)
    seals.check_files(
        args.lens / seals.SUMS, [args.lens / name for name in ("fit_log.csv", "rank_curve.csv", "provenance.json")]
    )
    written = [getattr(args, name) for name in outs]
    plots.run(settings, args.lens, args.sweep, args.suite, *written)
    seals.seal_files(args.seal, written)


if __name__ == "__main__":
    command.run_stage(main)
