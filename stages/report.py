"""Stage `report`: one page and one table over all models.

Reads   --resolved, settings of the models there are; --judgement, --kl, --cosine, --causal, --earliness,
        --training, --rank_curve and --detail, folders with a file per model; --seals, the sha256 of those
Writes  --html, a page that needs no network; --overview, the tuned curves of all models

A model without seals is not judged yet, in a fresh clone for example: the page names it and shows the others.
"""

import sys
from dataclasses import fields

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.report import page

    folders = [field.name for field in fields(page.ReportFolders)]
    args = command.paths(__doc__, *folders, "seals", "html", "overview")
    unjudged = []
    for key in sorted(settings.stem for settings in args.resolved.glob("*.json")):
        judged, plotted = (args.seals / stage / f"{key}.sha256" for stage in ("gates", "plots"))
        if not (judged.exists() and plotted.exists()):
            unjudged.append(key)
            print(
                f"report: leaves out {key}, which is not judged yet; `dvc repro publish@{key}` does that",
                file=sys.stderr,
            )
            continue
        curves = [folder / f"{key}.csv" for folder in (args.kl, args.cosine, args.causal)]
        drawn = [folder / f"{key}.csv" for folder in (args.earliness, args.training, args.rank_curve)]
        seals.check_files(judged, [args.judgement / f"{key}.json", *curves])
        seals.check_files(plotted, [*drawn, args.detail / f"{key}.json"])
    of_stages = page.ReportFolders(*(getattr(args, name) for name in folders))
    page.build(of_stages, args.html, args.overview, unjudged=unjudged)


if __name__ == "__main__":
    command.run_stage(main)
