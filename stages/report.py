"""Stage `report`: one page and one table over all models.

Reads   --resolved, settings of the models there are; --judgement, --kl, --cosine, --causal, --earliness,
        --training, --rank_curve and --detail, folders with a file per model; --seals, the sha256 of those
Writes  --html, a page that needs no network; --overview, the tuned curves of all models
"""

from dataclasses import fields

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.report import page

    folders = [field.name for field in fields(page.ReportFolders)]
    args = command.paths(__doc__, *folders, "seals", "html", "overview")
    for key in (settings.stem for settings in args.resolved.glob("*.json")):
        curves = [folder / f"{key}.csv" for folder in (args.kl, args.cosine, args.causal)]
        drawn = [folder / f"{key}.csv" for folder in (args.earliness, args.training, args.rank_curve)]
        seals.check_files(args.seals / "gates" / f"{key}.sha256", [args.judgement / f"{key}.json", *curves])
        seals.check_files(args.seals / "plots" / f"{key}.sha256", [*drawn, args.detail / f"{key}.json"])
    page.build(page.ReportFolders(*(getattr(args, name) for name in folders)), args.html, args.overview)


if __name__ == "__main__":
    command.run_stage(main)
