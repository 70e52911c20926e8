"""Stage `publish`: the lens as the folder that leaves the lab.

Reads   --settings, resolved settings of the model; --corpus; --lens; --metrics
Writes  --release, that folder with its index and receipt
"""

from lensmith import command
from lensmith.edge import params
from lensmith.release import package


def main() -> None:
    args = command.paths(__doc__, "settings", "corpus", "lens", "metrics", "release")
    settings = params.read_resolved(args.settings)
    package.build(settings, args.corpus, args.lens, args.metrics, args.release)


if __name__ == "__main__":
    command.run(main)
