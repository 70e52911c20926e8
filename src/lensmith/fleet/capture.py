"""Capture one part of a model's residual bank in a process of its own: `python -m lensmith.fleet.capture`.

Reads   --settings, resolved settings of the model; --corpus; --part I/N, which of N parts
Writes  every N-th shard of the bank of the training text, from the I-th on, below LENSMITH_HOME
"""

import argparse
from pathlib import Path

from lensmith.lens.schedule import scaled_to_vocabulary
from lensmith.process import command
from lensmith.settings import sections
from lensmith.source import bank, corpus
from lensmith.source.backbone import Backbone


def main() -> None:
    """Capture the part that the command line names."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--settings", type=Path, required=True)
    cli.add_argument("--corpus", type=Path, required=True)
    cli.add_argument("--part", required=True)
    args = cli.parse_args()
    part, parts = command.part("--part", args.part, "Nothing was captured.")
    settings, manifest = sections.read_resolved(args.settings), corpus.Manifest.read(args.corpus)
    backbone = Backbone.load(settings.source, manifest.model)
    fit = scaled_to_vocabulary(settings.fit, backbone.d_vocab, backbone.n_layers)
    tokens = corpus.read_tokens(args.corpus)
    n_shards = bank.capture_part(backbone, manifest.model.files, tokens, fit, part=part - 1, parts=parts)
    print(f"capture: part {part} of {parts}, {n_shards} shards")


if __name__ == "__main__":
    command.run(main)
