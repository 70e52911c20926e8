"""Stage `fit`: one translator per layer of one model.

Reads   --settings, resolved settings of the model; --code; --corpus
Writes  --lens, the translators, their provenance, the log of the fit
"""

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.lens import stage
    from lensmith.settings import sections

    args = command.paths(__doc__, "settings", "code", "corpus", "lens")
    settings = sections.read_resolved(args.settings)
    seals.check(args.corpus)
    stage.run(settings, args.code, args.corpus, args.lens)
    seals.seal(args.lens)


if __name__ == "__main__":
    command.run_stage(main)
