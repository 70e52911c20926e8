"""Stage `publish`: the lens as the folder that leaves the lab, and to the Hub where the settings name a repository.

Reads   --settings, resolved settings of the model; --corpus; --lens; --metrics; --kl, --cosine, --earliness,
        --training and --detail, what the report draws; --judged and --drawn, the sha256 of those
Writes  --release, that folder with its index and receipt
"""

from dataclasses import fields

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.lab import fsck
    from lensmith.release import publish
    from lensmith.settings import sections

    names = [field.name for field in fields(publish.Sources)]
    args = command.paths(__doc__, *names, "judged", "drawn", "release")
    sources = publish.Sources(*(getattr(args, name) for name in names))
    seals.check(args.corpus, args.lens)
    seals.check_files(args.judged, (args.metrics, args.kl, args.cosine))
    seals.check_files(args.drawn, (args.earliness, args.training, args.detail))
    settings = sections.read_resolved(args.settings)
    if settings.publish.repo is not None:
        fsck.refuse(args.corpus, args.lens)
    publish.run(settings, sources, args.release)


if __name__ == "__main__":
    command.run_stage(main, network=True)
