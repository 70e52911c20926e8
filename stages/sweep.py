"""Stage `sweep`: what a lens reads at every layer, on held-out text and on probe prompts.

Reads   --settings, resolved settings of the model; --corpus; --lens
Writes  --sweep, rows as CSV and the run as JSON
"""

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.judge import sweep
    from lensmith.settings import sections

    args = command.paths(__doc__, "settings", "corpus", "lens", "sweep")
    settings = sections.read_resolved(args.settings)
    seals.check(args.corpus, args.lens)
    sweep.run(settings, args.corpus, args.lens, args.sweep)
    seals.seal(args.sweep)


if __name__ == "__main__":
    command.run_stage(main)
