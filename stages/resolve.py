"""Stage `resolve`: what each model's stages depend on, in files that DVC compares.

Reads   --params, params.yaml; the source tree of the working directory
Writes  --out/models/<model>.json, the model's settings in full, with the sha256 of each file they name;
        --out/code/<stage>.json, the fingerprint of the code that the stage runs
"""

from pathlib import Path

from lensmith.process import command


def main() -> None:
    from lensmith.settings import resolved

    args = command.paths(__doc__, "params", "out")
    resolved.write(args.params, Path.cwd(), args.out)


if __name__ == "__main__":
    command.run_stage(main)
