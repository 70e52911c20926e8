"""Stage `suite-eval`: what a lens reads at every layer of the suite's prompts.

Reads   --settings, resolved settings of the model; --corpus; --lens
Writes  --suite, a row per prompt, layer and lens
"""

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.judge import suite
    from lensmith.settings import sections

    args = command.paths(__doc__, "settings", "corpus", "lens", "suite")
    settings = sections.read_resolved(args.settings)
    seals.check(args.corpus, args.lens)
    suite.run(settings, args.corpus, args.lens, args.suite)
    seals.seal(args.suite)


if __name__ == "__main__":
    command.run_stage(main)
