"""Stage `publish`: the lens as the folder that leaves the lab, and to the Hub where the settings name a repository.

Reads   --settings, resolved settings of the model; --corpus; --lens; --judgement; --kl, --cosine, --causal,
        --earliness, --training, --rank_curve and --detail, what the report draws; --judged and --drawn, their sha256
Writes  --release, that folder with its index and receipt
"""

from dataclasses import fields

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.lab import rehash
    from lensmith.release import publish
    from lensmith.report import page
    from lensmith.settings import sections

    drawn = [field.name for field in fields(page.ReportFolders) if field.name != "resolved"]
    args = command.paths(__doc__, "settings", "corpus", "lens", *drawn, "judged", "drawn", "release")
    seals.check(args.corpus, args.lens)
    seals.check_files(args.judged, (args.judgement, args.kl, args.cosine, args.causal))
    seals.check_files(args.drawn, (args.earliness, args.training, args.rank_curve, args.detail))
    settings = sections.read_resolved(args.settings)
    if settings.publish.repo is not None:
        rehash.refuse_damaged(args.corpus, args.lens)
    folders = page.ReportFolders(args.settings.parent, *(getattr(args, name).parent for name in drawn))
    html = page.page_of(args.settings, folders)
    publish.run(settings, args.corpus, args.lens, args.judgement, args.release, page=html)


if __name__ == "__main__":
    command.run_stage(main, network=True)
