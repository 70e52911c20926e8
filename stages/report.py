"""Stage `report`: one page and one table over all models.

Reads   --resolved, settings of the models there are; --metrics, --kl, --cosine, --earliness, --training and --detail,
        folders with a file per model
Writes  --html, a page that needs no network; --overview, the tuned curves of all models
"""

from dataclasses import fields

from lensmith import command
from lensmith.release import report


def main() -> None:
    folders = [field.name for field in fields(report.Folders)]
    args = command.paths(__doc__, *folders, "html", "overview")
    report.build(report.Folders(*(getattr(args, name) for name in folders)), args.html, args.overview)


if __name__ == "__main__":
    command.run(main)
