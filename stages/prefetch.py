"""Stage `prefetch`: pin a model and its text, and pack the text into tokens.

Reads   --settings, resolved settings of the model
Writes  --corpus, packed training and held-out tokens, manifest.json with every pin and hash
"""

from lensmith.process import command


def main() -> None:
    from lensmith.files import seals
    from lensmith.judge import prompts
    from lensmith.settings import sections
    from lensmith.source import prefetch

    args = command.paths(__doc__, "settings", "corpus")
    settings = sections.read_resolved(args.settings)
    prefetch.build(settings, args.corpus, prompts.texts(settings))
    seals.seal(args.corpus)


if __name__ == "__main__":
    command.run_stage(main, network=True)
