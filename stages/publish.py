"""Stage `publish`: the lens as the folder that leaves the lab, and to the Hub where the settings name a repository.

Reads   --settings, resolved settings of the model; --corpus; --lens; --metrics; --kl and --cosine, curves
Writes  --release, that folder with its index and receipt
"""

from dataclasses import fields

from lensmith import command
from lensmith.edge import params
from lensmith.release import publishing


def main() -> None:
    names = [field.name for field in fields(publishing.Sources)]
    args = command.paths(__doc__, *names, "release")
    sources = publishing.Sources(*(getattr(args, name) for name in names))
    publishing.run(params.read_resolved(args.settings), sources, args.release)


if __name__ == "__main__":
    command.run(main)
