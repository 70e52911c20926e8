"""Stage `fit`: one translator per layer of one model.

Reads   --settings, resolved settings of the model; --code; --corpus
Writes  --lens, the translators, their provenance, the log of the fit
"""

from lensmith import command
from lensmith.edge import params, sealed
from lensmith.lens import fit


def main() -> None:
    args = command.paths(__doc__, "settings", "code", "corpus", "lens")
    settings = params.read_resolved(args.settings)
    sealed.check(args.corpus)
    fit.run(settings, args.code, args.corpus, args.lens)
    sealed.seal(args.lens)


if __name__ == "__main__":
    command.run(main)
