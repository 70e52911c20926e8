"""Stage `sweep`: what a lens reads at every layer, on held-out text and on probe prompts.

Reads   --settings, resolved settings of the model; --corpus; --lens
Writes  --sweep, rows as CSV and the run as JSON
"""

from lensmith import command
from lensmith.edge import params, sealed
from lensmith.judge import sweep


def main() -> None:
    args = command.paths(__doc__, "settings", "corpus", "lens", "sweep")
    settings = params.read_resolved(args.settings)
    sealed.check(args.corpus, args.lens)
    sweep.run(settings, args.corpus, args.lens, args.sweep)
    sealed.seal(args.sweep)


if __name__ == "__main__":
    command.run(main)
