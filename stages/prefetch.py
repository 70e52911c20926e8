"""Stage `prefetch`: pin a model and its text, and pack the text into tokens.

Reads   --settings, resolved settings of the model
Writes  --corpus, packed training and held-out tokens, manifest.json with every pin and hash
"""

from lensmith import command
from lensmith.edge import params, sealed
from lensmith.source import packing


def main() -> None:
    args = command.paths(__doc__, "settings", "corpus")
    settings = params.read_resolved(args.settings)
    packing.build(settings, args.corpus)
    sealed.seal(args.corpus)


if __name__ == "__main__":
    command.run(main)
