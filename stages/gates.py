"""Stage `gates`: KPIs, their intervals, and the verdict of each gate.

Reads   --settings, resolved settings of the model; --sweep; --suite
Writes  --judgement, all of it; --metrics, a few numbers of it; --kl, --cosine and --causal, curves by depth;
        --verdicts, what each gate measured; --lenses, all lenses side by side; --seal, their sha256
"""

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.judge import judging
    from lensmith.settings import sections

    outputs = ("judgement", "metrics", "kl", "cosine", "causal", "verdicts", "lenses")
    args = command.paths(__doc__, "settings", "sweep", "suite", *outputs, "seal")
    settings = sections.read_resolved(args.settings)
    seals.check(args.sweep, args.suite)
    written = judging.Outputs(*(getattr(args, name) for name in outputs))
    judging.run(settings, args.sweep, args.suite, written)
    seals.seal_files(args.seal, [getattr(args, name) for name in outputs])


if __name__ == "__main__":
    command.run_stage(main)
