"""Stage `publish`: the lens as the folder that leaves the lab, and to the Hub where the settings name a repository.

Reads   --settings, resolved settings of the model; --corpus; --lens; --metrics; --kl, --cosine, --earliness,
        --training and --detail, what the report draws; --judged and --drawn, the sha256 of those
Writes  --release, that folder with its index and receipt
"""

from dataclasses import fields

from lensmith import command
from lensmith.edge import fsck, params, sealed
from lensmith.release import publishing


def main() -> None:
    names = [field.name for field in fields(publishing.Sources)]
    args = command.paths(__doc__, *names, "judged", "drawn", "release")
    sources = publishing.Sources(*(getattr(args, name) for name in names))
    sealed.check(args.corpus, args.lens)
    sealed.check_files(args.judged, (args.metrics, args.kl, args.cosine))
    sealed.check_files(args.drawn, (args.earliness, args.training, args.detail))
    settings = params.read_resolved(args.settings)
    if settings.publish.repo is not None:
        fsck.refuse(args.corpus, args.lens)
    publishing.run(settings, sources, args.release)


if __name__ == "__main__":
    command.run(main)
