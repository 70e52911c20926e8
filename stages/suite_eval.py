"""Stage `suite-eval`: what a lens reads at every layer of the suite's prompts.

Reads   --settings, resolved settings of the model; --corpus; --lens
Writes  --suite, a row per prompt, layer and lens
"""

from lensmith import command
from lensmith.edge import params, sealed
from lensmith.judge import suite


def main() -> None:
    args = command.paths(__doc__, "settings", "corpus", "lens", "suite")
    settings = params.read_resolved(args.settings)
    sealed.check(args.corpus, args.lens)
    suite.run(settings, args.corpus, args.lens, args.suite)
    sealed.seal(args.suite)


if __name__ == "__main__":
    command.run(main)
