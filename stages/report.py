"""Stage `report`: one page and one table over all models.

Reads   --resolved, settings of the models there are; --metrics, --kl and --cosine, folders with a file per model
Writes  --html, a page that needs no network; --overview, the tuned curves of all models
"""

from lensmith import command
from lensmith.release import report


def main() -> None:
    args = command.paths(__doc__, "resolved", "metrics", "kl", "cosine", "html", "overview")
    report.build(args.resolved, args.metrics, args.kl, args.cosine, args.html, args.overview)


if __name__ == "__main__":
    command.run(main)
